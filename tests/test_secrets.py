"""What must not be recorded is left out of what is recorded."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from mnist_hydra.secrets import by_reference, hide

SECRET = "s3cr3t-word"


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
    recorded = by_reference({**flat, "words": str(resolved["words"])}, cfg)
    assert SECRET not in str(recorded)
    assert recorded["token"] == "${oc.env:MY_TOKEN}" and recorded["width"] == "64"
    assert recorded["model.url"] == "http://h/${token}" and "${token}" in recorded["words"]
    assert recorded["copy.url"] == "${model}"
