"""No secret stands in anything that a run says or keeps: a server that is away leaves it all in the
spool, as it would be recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Commands
from tests.security.conftest import Store

# One process has the store and what commands are forked from.
pytestmark = pytest.mark.xdist_group("security")

SECRET, OTHER = "s3cr3t-word", "another-s3cr3t"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{SECRET}@127.0.0.1:9",
        f"postgresql://me:{SECRET}@127.0.0.1:9/runs",
        "${oc.env:STORE}",
        "http://me:${oc.env:WORD}@127.0.0.1:9",
    ],
)
def test_no_password_is_in_what_a_run_says_or_keeps(
    commands: Commands, trained: Store, tmp_path: Path, uri: str
) -> None:
    words = [word for word in trained.words if not word.startswith("output_dir=")]
    words += [f"tracking.uri='{uri}'", f"data.name='http://me:{SECRET}@h'", "epochs=1"]
    environment = {"STORE": f"http://me:{SECRET}@127.0.0.1:9", "WORD": SECRET}
    environment["MLFLOW_TRACKING_PASSWORD"] = OTHER
    done = commands.run(tmp_path, *words, f"aug.name={OTHER}", **environment)
    assert done.code == 0 and "not delivered" in done.said, done.said
    assert SECRET not in done.said
    kept = [file for file in (tmp_path / "outputs" / "spool").rglob("*") if file.is_file()]
    assert any(file.name == "provenance.json" for file in kept)
    for file in kept:
        content = file.read_bytes()
        assert SECRET.encode() not in content and OTHER.encode() not in content, file
