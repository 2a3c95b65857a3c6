"""The words of a command before Hydra reads them: paths stay as typed, jobs of a sweep get names of folders.

Hydra's grammar gives a meaning to ``=``, commas, brackets, spaces and quotes, and knows ASCII letters only. In the
value of an argument that is a path they are ordinary characters, so such a value is quoted here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

__all__ = ["folder_name", "quote_paths", "words_in_list"]

_PATHS = (
    "output",
    "model",
    "samples",
    "against",
    "resume",
    "initial",
    "calibrations",
    "file",
    "metric",
    "truth",
    "join",
)
_LISTS = ("calibrations", "path", "metric", "model", "truth", "join")  # where [a,b] is a list, unless that is a file
_SPECIAL = ("", "null", "???")
_PLAIN = re.compile(r"\.|(/|\.{1,2}/)?[A-Za-z_][A-Za-z0-9_./-]*")
_READ_OTHERWISE = ("true", "false", "inf", "nan", "null")
_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|cast|str)\(.*\)", re.DOTALL)
_SETTING = r"(?:,\s*[A-Za-z_]\w*\s*:\s*(?:\[[^\[\]{}]*\]\s*|[^,{}]*))"  # after a path: {path: a.pth, shape: [1, 2]}
_LONGEST = 120  # characters of a sweep folder's name


def quote_paths(words: Sequence[str]) -> list[str]:
    """The overrides, with every path in quotes, so that Hydra reads it unchanged.

    A path that exists is taken as it is, whatever its name. One that does not is read as Hydra reads it only where it
    is a list or a sweep (``[a,b]``, ``{path: a}``; with ``--multirun`` ``a,b`` and ``glob(*)`` too).
    """
    several = any(word in ("-m", "--multirun") or word.lower() == "hydra.mode=multirun" for word in words)
    return [_quote_word(word, several) for word in words]


def words_in_list(words: Sequence[str], name: str) -> list[str]:
    """``runs/a runs/b metric=rmse`` as ``runs=[runs/a,runs/b] metric=rmse``, for the setting of this name.

    Flags stay, and so do settings, unless there is a file of that name.
    """
    paths = [word for word in words if not word.startswith("-") and ("=" not in word or _exists(word))]
    rest = [word for word in words if word not in paths]
    return [f"{name}=[{','.join(map(_quoted, paths))}]", *rest] if paths else rest


def _quote_word(word: str, several: bool) -> str:
    found = re.fullmatch(r"(\+{0,2}([\w.]+))=(.*)", word, re.DOTALL)
    if found is None or word.startswith("-"):
        return word
    start, key, value = found.groups()
    last = key.rpartition(".")[2]
    if key in _PATHS or last == "path" or last.endswith("_path"):
        return f"{start}={_quote_path(value, last, several)}"
    return word


def _quote_path(value: str, name: str, several: bool) -> str:
    if value in _SPECIAL or (_PLAIN.fullmatch(value) and value.lower() not in _READ_OTHERWISE):
        return value
    if _exists(value):
        return _quoted(value.replace("${", r"\${"))
    if _is_quoted(value):
        return value
    inside = re.fullmatch(rf"\{{\s*path\s*:\s*(.*?)\s*({_SETTING}*)\}}", value, re.DOTALL)
    if inside is not None:
        return f"{{path: {_quote_path(inside[1], 'output', False)}{inside[2]}}}"
    if name in _LISTS and re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return f"[{_quote_each(value[1:-1])}]"
    if several and _FUNCTION.fullmatch(value):
        return value
    return _quote_each(value) if several and "," in value else _quoted(value)


def _quote_each(values: str) -> str:
    """Paths with commas between them. A comma is part of a path if there is such a path."""
    pieces, found = values.split(","), []
    while pieces:
        whole = [count for count in range(len(pieces), 1, -1) if _exists(",".join(pieces[:count]))]
        count = whole[0] if whole else 1
        found.append(_quote_path(",".join(pieces[:count]).strip(), "output", False))
        del pieces[:count]
    return ",".join(found)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a null character
        return False


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quoted(value: str) -> str:
    """In Hydra's quotes: backslashes count only before a quote and at the end."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"


def folder_name(overrides: str) -> str:
    """The name of a job's folder in a sweep, from ``a=1,b=2``: ``a-1+b-2``, which a shell and every command take.

    A name with other characters and a long name get a digest at the end, which keeps them different.
    """
    wished = overrides.replace("=", "-").replace(",", "+")
    name = re.sub(r"(?a)[^\w.+-]", "_", re.sub("['\"]", "", wished))
    if name == wished and "+" not in overrides and len(name) <= _LONGEST:
        return name or "job"
    return f"{name[:_LONGEST]}+{hashlib.sha256(overrides.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
