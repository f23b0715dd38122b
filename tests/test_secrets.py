"""What must not be recorded is left out of what is recorded."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mnist_hydra.cli.commands import place_words
from mnist_hydra.config import resolved, unresolved
from mnist_hydra.secrets import (
    address_without_password,
    by_reference,
    hide,
    hide_in_error,
    remember_variables,
)

SECRET = "s3cr3t-word"


@pytest.mark.parametrize(
    ("value", "said", "shown"),
    [
        ("secret-and-more", "got secret-and-more", "got ${oc.env:A_LONGER}"),
        ("first line\nsecond", "got first line second", "got ${oc.env:A_LONGER}"),
        ("/data/mine", "right: /data/mine/old", "right: /data/mine/old"),
    ],
)
def test_an_error_shows_the_reference_and_no_part_of_what_it_refers_to(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str, shown: str
) -> None:
    monkeypatch.setenv("A", "secret")
    monkeypatch.setenv("A_LONGER", value)
    remember_variables(OmegaConf.create({"a": "${oc.env:A}", "b": "${oc.env:A_LONGER}"}))
    assert hide_in_error(said) == shown


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        (f"x=http://me:{SECRET}@host:5000/a y", "x=http://me@host:5000/a y"),
        (f"'postgresql://me:{SECRET}/@1@host/db'", "'postgresql://me@host/db'"),
        (f"mssql://h/db?uid=me&pwd={SECRET}&x=1", "mssql://h/db?uid=me&pwd=&x=1"),
        ('{"a": "http://h:5000", "b": "me@h"}', '{"a": "http://h:5000", "b": "me@h"}'),
        ("a: http://h:5000\nb: me@h", "a: http://h:5000\nb: me@h"),
        (f"said {SECRET}", "said ${oc.env:MLFLOW_TRACKING_TOKEN}"),
    ],
)
def test_no_password_or_token_is_recorded(
    monkeypatch: pytest.MonkeyPatch, text: str, recorded: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    assert hide(text) == recorded


def test_what_comes_from_the_environment_is_recorded_as_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    cfg = OmegaConf.create(
        {
            "token": "${oc.env:MY_TOKEN}",
            "model": {"url": "http://h/${token}", "width": 64},
            "words": ["a", "${token}"],
            "copy": "${model}",
            "width": "${model.width}",
        }
    )
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    flat = {"token": SECRET, "model.url": f"http://h/{SECRET}", "model.width": "64", "width": "64"}
    flat["copy.url"] = flat["model.url"]
    recorded = by_reference({**flat, "words": str(resolved["words"])}, unresolved(cfg))
    assert SECRET not in str(recorded)
    assert recorded["token"] == "${oc.env:MY_TOKEN}" and recorded["width"] == "64"
    assert recorded["model.url"] == "http://h/${token}" and "${token}" in recorded["words"]
    assert recorded["copy.url"] == "${model}"


@pytest.mark.parametrize("written", ["${ oc.env:MY_TOKEN}", "${oc.env : MY_TOKEN }"])
def test_a_reference_may_hold_blanks(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    cfg = OmegaConf.create({"token": written})
    assert by_reference({"token": cfg.token}, unresolved(cfg)) == {"token": written}
    remember_variables(cfg)
    assert hide_in_error(f"bad token {SECRET}") == "bad token ${oc.env:MY_TOKEN}"
    place = {"output_dir": "outputs", "tracking": {"uri": written, "experiment_name": "mine"}}
    words = place_words(OmegaConf.create(place))
    assert OverridesParser.create().parse_override(words[0]).value() == written
    assert words[0] == f"tracking.uri={written}"


def test_an_error_names_the_variable_and_not_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("OTHER", "not read")
    remember_variables(OmegaConf.create({"a": {"b": ["http://h/${oc.env:'MY_TOKEN',x}"]}}))
    said = hide_in_error(f"bad token {SECRET}, not read, http://me:{SECRET}@h")
    assert said == "bad token ${oc.env:MY_TOKEN}, not read, http://me@h"


def test_a_short_password_is_no_part_of_a_word_and_a_short_value_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "1234")
    assert hide("ab1234cd 1234") == "ab1234cd ${oc.env:MLFLOW_TRACKING_PASSWORD}"
    monkeypatch.setenv("MY_TOKEN", "5678")
    remember_variables(OmegaConf.create({"token": "${oc.env:MY_TOKEN}"}))
    assert hide_in_error("id5678") == "id${oc.env:MY_TOKEN}"


def test_what_is_recorded_is_text_that_every_store_holds() -> None:
    assert hide("caf\u00e9 \udcff\0") == "caf\u00e9 \\udcff\\0"


@pytest.mark.parametrize("password", [SECRET, "a/b", "a@b:c", "a b", "a'\"b", "[::1", "a\nb"])
def test_an_address_that_cannot_be_read_is_shown_without_its_password(password: str) -> None:
    assert address_without_password(f"http://me:{password}@h:x/") == "http://me@h:x/"


def test_a_value_behind_another_key_is_hidden_where_one_key_alone_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAMED_HERE_ALONE", SECRET)
    cfg = OmegaConf.create({"mine": "${oc.env:NAMED_HERE_ALONE}", "sweep": "${mine}"})
    assert resolved(cfg, "sweep") == SECRET
    assert hide_in_error(f"sweep={SECRET}") == "sweep=${oc.env:NAMED_HERE_ALONE}"
