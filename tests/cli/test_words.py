"""Paths are taken as they are typed, and a sweep's folders have names that every command takes."""

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sde_toolkit.cli.words import folder_name, quote_paths

ODD = [
    *("a=1,b=2", "with space", " around ", "é ü 日本", "a,b", "it's", 'say "so"', "(a)", "[a]", "{a}", "back\\", "~x"),
    *("100", "1e3", "true", "null.txt", "a\\'b", "a:b", "#", "%41", "$HOME", "a;b&c|d", "choice(a,b)", "-x", "é'"),
]
KEYS = ["output", "model", "samples", "against", "resume", "initial", "data.path", "data.labels_path", "+data.path"]


def read(word):
    """What Hydra and OmegaConf make of the value of a word."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override(), word
    return OmegaConf.create({"value": override.value()}).value


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ODD)
def test_what_is_there_is_taken_as_it_is(tmp_path, monkeypatch, key, name):
    monkeypatch.chdir(tmp_path)
    os.mkdir(name)
    for path in (name, f"./{name}", str(tmp_path / name)):
        assert str(read(*quote_paths([f"{key}={path}"]))) == path
        assert str(read(*quote_paths(["--multirun", f"{key}={path}"])[1:])) == path


def test_even_what_looks_like_an_interpolation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("${x}")
    assert read(*quote_paths(["model=${x}"])) == "${x}"


letters = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n\r"), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(letters)
@example("a\\")
@example("\\'")
def test_a_folder_to_come_may_have_any_name(name):
    lists = name.startswith(("{", "[")) or (name[:1] == name[-1:] and name[:1] in "'\"")
    if not lists and "${" not in name and name not in ("null", "???"):
        assert str(read(*quote_paths([f"output={name}"]))) == name


@pytest.mark.parametrize("given", ["'a b'", '"a=1,b"', "'it\\'s'"])
def test_what_is_quoted_already_stays(given):
    assert quote_paths([f"output={given}"]) == [f"output={given}"]


@pytest.mark.parametrize("name", ["'", '"', "'a", "a b'", "'a b\"", '"x=1'])
def test_a_quote_on_one_side_is_a_letter(name):
    assert str(read(*quote_paths([f"output={name}"]))) == name


def test_lists_and_sweeps_are_still_lists_and_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("a=1,b=2")
    assert read(*quote_paths(["calibrations=[a=1,b=2/c.json,d e.json]"])) == ["a=1", "b=2/c.json", "d e.json"]
    (tmp_path / "a=1,b=2/c.json").touch()
    assert read(*quote_paths(["calibrations=[a=1,b=2/c.json,d e.json]"])) == ["a=1,b=2/c.json", "d e.json"]
    _, word = quote_paths(["--multirun", "model=a=1,b=2,plain"])
    assert list(OverridesParser.create().parse_override(word).sweep_string_iterator()) == ["'a=1,b=2'", "plain"]
    assert read(*quote_paths(["model={path:a=1,b=2}"])) == {"path": "a=1,b=2"}
    told = read(*quote_paths(["model={path: my runs/a=1,b.pth, config: ve/church, centered: true}"]))
    assert told == {"path": "my runs/a=1,b.pth", "config": "ve/church", "centered": True}
    told = read(*quote_paths(["model={path: a=1,b.pt, event_shape: [3, 8, 8], weights: raw}"]))
    assert told == {"path": "a=1,b.pt", "event_shape": [3, 8, 8], "weights": "raw"}
    untouched = [
        "n=3",
        "budgets=[1,2]",
        "output=",
        "output=null",
        "solver=[ddim,ddpm]",
        "seed=0,1",
        "-m",
        "--config-dir=a b",
    ]
    assert quote_paths(untouched) == untouched


pairs = st.lists(st.tuples(st.sampled_from(["model", "n", "seed", "+x.y"]), letters), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(pairs, pairs)
def test_names_of_sweep_folders_need_no_quotes_and_differ(one, other):
    one, other = (",".join(f"{key}={value}" for key, value in found) for found in (one, other))
    name = folder_name(one)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
    assert len(name) < 140
    assert read(f"samples=multirun/sample/{name}") == f"multirun/sample/{name}"
    assert (folder_name(other) == name) == (one == other)


def test_a_plain_sweep_is_easily_read():
    assert folder_name("n=2,nfe=5,solver=ddim") == "n-2+nfe-5+solver-ddim"
    assert folder_name("model=a/b,n=2") != folder_name("model=a_b,n=2")
