"""Files of plain data, YAML and JSON, from any author: read with bounded work, or refused with the reason.

Only regular files are opened: a pipe or a device could keep the reader waiting for ever. Size, depth and number of
values are limited. An alias of YAML counts as all the values that it stands for, so that a few lines cannot become a
million lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["UnreadableFileError", "read_bytes", "read_json", "read_yaml", "yaml_text"]

_MOST_BYTES = 32 * 2**20
_MOST_VALUES = 1_000_000
_LARGEST_DEPTH = 64
_MOST_DIGITS = 4000  # of a number: to parse one takes a time that grows as the square of its length


class UnreadableFileError(Exception):
    """Why a file is not read, as a clause: "it is not a regular file". Callers turn it into their own error."""


def read_bytes(file: Path, most: int = _MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableFileError: for a pipe, a device, a folder; a file that is too large or may not be read.
    """
    if not file.exists():
        raise FileNotFoundError(file)
    if not file.is_file():
        raise UnreadableFileError(f"{file.name} is not a regular file")
    try:
        with file.open("rb") as stream:
            content = stream.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFileError(f"{file.name} cannot be read ({type(error).__name__})") from None
    if len(content) > most:
        raise UnreadableFileError(f"{file.name} is larger than {most} bytes")
    return content


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableFileError: if it is not JSON, or nested too deep.

    """
    content = read_bytes(file)
    try:
        found = json.loads(content.decode("utf-8"))
        _check_depth(found, file)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{file.name} cannot be read ({type(error).__name__})") from None
    return found


def _check_depth(found: Any, file: Path) -> None:
    level = [found]
    for _ in range(_LARGEST_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise UnreadableFileError(f"{file.name} is nested more than {_LARGEST_DEPTH} deep")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def read_yaml(file: Path) -> Any:
    """The content of a YAML file: plain data only, tags create no objects.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableFileError: if it is not YAML of plain data, nested too deep, or stands for too many values.
    """
    content = read_bytes(file)
    try:
        return _parsed(content.decode("utf-8"), file.name)
    except UnreadableFileError:
        raise
    except Exception as error:  # YAML's constructors raise many kinds: ValueError, KeyError, AttributeError, ...
        raise UnreadableFileError(f"{file.name} cannot be read ({type(error).__name__})") from None


def _parsed(text: str, name: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _check_events(yaml.parse(text, Loader=loader), name)
    return yaml.load(text, Loader=loader)


def _check_events(events: Iterator[Any], name: str) -> None:
    """Count the values as if every alias were spelled out, before any of them is built."""
    import yaml

    sizes: dict[str, int] = {}  # number of values that a complete anchor stands for
    open_ones: list[
        tuple[str | None, int]
    ] = []  # of each open list or mapping: its anchor, and the number of values before it
    count = 0
    event: Any
    for event in events:  # from the parser, which builds nothing
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UnreadableFileError(f"{name} has an alias that stands for nothing yet")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
            if len(event.value) > _MOST_DIGITS and re.fullmatch(r"[0-9a-fA-Fxob:._+-]*", event.value):
                raise UnreadableFileError(f"{name} has a number of {len(event.value)} digits")
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_ones.append((event.anchor, count))
            count += 1
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_ones.pop()
            if anchor:
                sizes[anchor] = count - before
        if len(open_ones) > _LARGEST_DEPTH:
            raise UnreadableFileError(f"{name} is nested more than {_LARGEST_DEPTH} deep")
        if count > _MOST_VALUES:
            raise UnreadableFileError(f"{name} stands for more than {_MOST_VALUES} values")


def yaml_text(content: Mapping[str, Any]) -> str:
    """Plain data as YAML, in the order of its keys.

    Raises:
        ValueError: if reading the text back would give other data.
    """
    import yaml

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Spelled(dumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    try:
        text = str(yaml.dump(dict(content), Dumper=Spelled, sort_keys=False, default_flow_style=None, width=100))
        back = _parsed(text, "the text")
    except (yaml.YAMLError, RecursionError, UnreadableFileError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    if not _equal_data(back, dict(content)):
        raise ValueError("YAML would change it")
    return text


def _equal_data(a: Any, b: Any) -> bool:
    """Whether both are the same data. NaN equals NaN, and a tuple equals a list."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal_data(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal_data, a, b))
    return bool(a == b) or (a != a and b != b)
