"""Clusters that are not there, a store that may not be written: one line, nothing left behind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from hydra_plugins.mnist_hydra.ray_launcher import ANSWER_WITHIN_S, JOIN_WITHIN_S
from mnist_hydra.errors import UserError
from mnist_hydra.tracking import store
from tests.faults.conftest import need
from tests.faults.faulty_sweep import FaultySweep, finish
from tests.faults.postgres import BINARIES, free_port, postgres


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(sweep: FaultySweep, output_dir: Path, *launcher: str) -> str:
    """The one line that a sweep says, and that it says it in time and leaves nothing."""
    code, said = finish(sweep.start(*launcher, f"output_dir={output_dir}"))
    assert code == 2, said
    assert not (output_dir / "mlflow.db").exists()
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=slurm"], id="slurm"),
        pytest.param(["hydra/launcher=ray", "hydra.launcher.address=head:6379"], id="ray"),
    ],
)
def test_trials_on_other_machines_are_not_recorded_in_a_file_of_this_one(
    tmp_path: Path, mnist: Path, launcher: list[str]
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "refused", ["seed=1,2"])
    said = refused(sweep, tmp_path / "outputs", *launcher)
    assert said.startswith(f"error: {launcher[0]} runs trials on other machines")
    assert "right: tracking=server tracking.uri=http://HOST:5000" in said


@pytest.mark.xdist_group("on_server")
def test_a_ray_address_where_nobody_listens_is_refused(
    tmp_path: Path, mnist: Path, on_server: list[str]
) -> None:
    pytest.importorskip("ray")
    sweep = FaultySweep(tmp_path, mnist, "refused", ["seed=1,2", *on_server])
    address = f"hydra.launcher.address=127.0.0.1:{free_port()}"
    said = refused(sweep, tmp_path / "outputs", "hydra/launcher=ray", address)
    assert "no Ray cluster answers there" in said and "hydra.launcher.address=local" in said


@pytest.mark.xdist_group("on_server")
def test_a_ray_address_where_something_else_listens_is_refused_in_time(
    tmp_path: Path, mnist: Path, on_server: list[str], silent_server: str
) -> None:
    pytest.importorskip("ray")
    assert ANSWER_WITHIN_S + JOIN_WITHIN_S < 15
    sweep = FaultySweep(tmp_path, mnist, "refused", ["seed=1,2", *on_server])
    address = f"hydra.launcher.address={silent_server}"
    said = refused(sweep, tmp_path / "outputs", "hydra/launcher=ray", address)
    assert "what listens there is no Ray cluster" in said


@pytest.mark.xdist_group("on_server")
def test_a_slurm_that_does_not_answer_is_refused(
    tmp_path: Path, mnist: Path, on_server: list[str]
) -> None:
    need("slurm-wlm", "squeue", "sbatch")
    sweep = FaultySweep(tmp_path, mnist, "refused", ["seed=1,2", *on_server])
    nowhere = tmp_path / "slurm.conf"
    nowhere.write_text("ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nMessageTimeout=2\n")
    launcher = ["hydra/launcher=slurm", f"output_dir={tmp_path / 'outputs'}"]
    going = sweep.start(*launcher, environment={"SLURM_CONF": str(nowhere)})
    code, said = finish(going)
    assert code == 2 and len(said.splitlines()) == 1, said
    assert "squeue gets no answer on this machine (" in said and "hydra/launcher=joblib" in said


def test_a_user_of_a_database_who_may_not_write_is_told_what_to_grant(
    tmp_path: Path, short_folder: Path
) -> None:
    need("postgresql", *(str(BINARIES / name) for name in ("initdb", "postgres", "pg_isready")))
    with postgres(short_folder) as uri:
        owner = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")

        def said_after(*grants: str) -> str:
            with owner.connect() as database:
                for grant in grants:
                    database.execute(sqlalchemy.text(grant))
            with pytest.raises(UserError) as refusal:
                store.check_usable(reader, tmp_path)
            return str(refusal.value).partition("GRANT ")[2]

        reader = store.read_address(uri.replace("//postgres@", "//a-reader@"), tmp_path)
        assert said_after('CREATE USER "a-reader"') == 'CREATE ON SCHEMA public TO "a-reader"'
        store.open_store(store.read_address(uri, tmp_path))
        tables = said_after('GRANT SELECT ON ALL TABLES IN SCHEMA public TO "a-reader"')
        assert tables.startswith("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO")
        store.check_usable(reader, tmp_path, write=False)
        sequences = said_after(f"GRANT {tables}")
        assert sequences.startswith("USAGE ON ALL SEQUENCES IN SCHEMA public TO")
        with owner.connect() as database:
            database.execute(sqlalchemy.text(f"GRANT {sequences}"))
        store.check_usable(reader, tmp_path)
        owner.dispose()


def test_an_unknown_setting_of_submitit_is_refused(tmp_path: Path, mnist: Path) -> None:
    sweep = FaultySweep(tmp_path, mnist, "refused", ["seed=1,2"])
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "+hydra.launcher.color=red"]
    code, said = finish(sweep.start(*launcher, f"output_dir={tmp_path / 'outputs'}"))
    assert code == 2, said
    assert "submitit refuses its settings" in said and "color" in said
    assert not (tmp_path / "outputs" / "mlflow.db").exists()
