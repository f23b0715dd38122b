"""A store's address is read in one place, and what cannot be a store is one line."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from filelock import FileLock
from mlflow.server.security_utils import INVALID_HOST_MSG
from mlflow.store.db import utils

from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.errors import StoreAway, UserError
from mnist_hydra.tracking import store
from mnist_hydra.tracking.journal import SpooledRun
from mnist_hydra.tracking.tracker import NothingRecorded, Tracker, check_store, is_away
from tests.sweep_process import ended, processes

Begin = Callable[[Place], object]
SECRET = "s3cr3t"
SPOOLED = SpooledRun("b" * 32, "e", "a run", {}, 1, None)


def place(folder: Path, uri: str | None = None) -> Place:
    return Place(str(folder), TrackingConfig("local", uri, "e"))


@pytest.mark.parametrize(
    ("uri", "kind", "shown"),
    [
        (None, "sqlite", "sqlite:////out/mlflow.db"),
        ("sqlite:////data/x.db", "sqlite", "sqlite:////data/x.db"),
        ("SQLite:////data/x.db", "sqlite", "sqlite:////data/x.db"),
        ("sqlite:////me@work/x.db", "sqlite", "sqlite:////me@work/x.db"),
        ("sqlite:///~/x.db", "sqlite", f"sqlite:///{Path.home()}/x.db"),
        ("http://host:5000", "server", "http://host:5000"),
        ("HTTP://Host:5000/", "server", "http://host:5000"),
        ("https://host/mlflow/", "server", "https://host/mlflow"),
        ("http://[::1]:5000", "server", "http://[::1]:5000"),
        (f"http://me:{SECRET}@host:5000", "server", "http://host:5000"),
        (f"postgresql://me:{SECRET}@host/db", "database", "postgresql://me@host/db"),
        (f"postgresql://me:a@{SECRET}@host/db", "database", "postgresql://me@host/db"),
        (f"postgresql://h/db?password={SECRET}", "database", "postgresql://h/db?password="),
    ],
)
def test_an_address_is_read_as_its_kind_and_shown_without_its_password(
    uri: str | None, kind: str, shown: str
) -> None:
    read = store.read_address(uri, Path("/out"))
    assert (read.kind, read.shown) == (kind, shown)
    assert (read.artifacts is None) == (kind == "server")
    if kind == "server":
        assert SECRET not in read.uri and read.password == (SECRET if SECRET in str(uri) else None)


def test_a_postgresql_that_is_gone_is_noticed_unless_its_address_says_otherwise() -> None:
    said = "postgresql://h/db?sslmode=disable&keepalives_idle=600"
    for uri, idle_s in (("postgresql://h/db", "5"), (said, "600")):
        read = store.read_address(uri, Path("/out"))
        told = dict(sqlalchemy.make_url(read.uri).query)
        assert (told["keepalives_idle"], told["tcp_user_timeout"]) == (idle_s, "20000")
        assert ("sslmode" in told) == ("sslmode" in uri) and "tcp_user_timeout" not in read.shown
    other = store.read_address("postgresql+psycopg://h/db", Path("/out"))
    assert other.uri == "postgresql+psycopg://h/db"


ODD = [
    "", " ", "x", "mlruns", "./mlruns", "/tmp/x", "file:///x", "file:/x", "file:x", "FILE:///x",
    "http", "http:", "http://", "http:///x", "http://:5000", "http://h:port", "http://h:99999",
    "http://h/?a=b",
    "http://ho st", "http://h\n", "http://h\x00", "https://", "https:/h", "http+x://h", "://h",
    "sqlite", "sqlite:", "sqlite:/x.db", "sqlite://", "sqlite:///", "sqlite:///:memory:",
    "sqlite:///x.db?mode=ro", "sqlite:///folder/", "sqlite+aiosqlite:///", "sqlite://x.db",
    "postgresql", "postgresql:", "postgresql://", "postgresql://host", "postgresql://host/",
    "postgresql:///db", "postgresql+nosuch://h/db", "postgresql+a.b://h/d",
    "postgresql+__main__://h/d",
    "postgresql+sys://h/d", "mysql+psycopg2://h/db", "postgresql+psycopg2+x://h/db",
    "mysql://h/db", "mssql://h/db", "oracle://h/db",
    "databricks", "databricks://x", "databricks-uc", "s3://bucket", "ftp://h", "h:5000", "ü://h",
    f"http://me:{SECRET}/x@h", f"http://me:x {SECRET}@h", f"postgresql://me:{SECRET}@[::1/db",
    f"ftp://me:{SECRET}@h", f"http://me:{SECRET}@", f"postgresql://me:{SECRET}@host",
]  # fmt: skip


@pytest.mark.parametrize("uri", ODD)
def test_an_odd_address_is_refused_in_one_line_without_its_password(
    uri: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        check_store(place(tmp_path, uri))
    said = str(refused.value)
    assert said.startswith("tracking.uri=") and "right: " in said and SECRET not in said
    assert not list(tmp_path.iterdir())


def test_a_password_that_is_not_escaped_is_what_is_wrong_with_an_address() -> None:
    with pytest.raises(UserError, match="is written %2F") as refused:
        store.read_address(f"postgresql://me:p@ss/{SECRET}@127.0.0.1/db", Path("/out"))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["a%20b%zz", "a?b", "a#b ü", "a'b;&\"c"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    tracker = Tracker(place(folder))
    run_id = tracker.create_run(SPOOLED)
    tracker.log_text(run_id, "hello", "words.txt")
    assert Tracker(place(folder)).read_text(run_id, "words.txt") == "hello"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert {p.name for p in folder.iterdir()} >= {"mlflow.db", "artifacts"}


def migrated(path: Path, revision: str) -> None:
    """Bring a new file as far as a revision of MLflow's tables."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    utils.InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


HALF_WAY = "97727af70f4d"


@pytest.mark.parametrize("age_s", [3600, -3600])
@pytest.mark.parametrize("made", ["empty", "first tables", "half of the migrations"])
def test_a_half_made_store_without_a_run_is_made_anew_whatever_the_clock_said(
    tmp_path: Path, made: str, age_s: int
) -> None:
    path = tmp_path / "mlflow.db"
    if made == "empty":
        path.touch()
    elif made == "first tables":
        engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        utils.InitialBase.metadata.create_all(engine)
        engine.dispose()
    else:
        migrated(path, HALF_WAY)
    at_s = time.time() - age_s
    os.utime(path, (at_s, at_s))
    assert store.problem_of(path) is None
    tracker = Tracker(place(tmp_path))
    assert tracker.find_run(tracker.create_run(SPOOLED)).info.run_name == "a run"


def test_a_store_that_another_program_makes_just_now_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "STILL_S", 120.0)
    path = tmp_path / "mlflow.db"
    migrated(path, HALF_WAY)
    file = path.stat().st_ino

    def go_on() -> None:
        time.sleep(1)
        migrated(path, "heads")

    other = threading.Thread(target=go_on)
    other.start()
    tracker = Tracker(place(tmp_path))
    other.join()
    assert path.stat().st_ino == file
    assert tracker.find_run(tracker.create_run(SPOOLED)).info.run_name == "a run"


def older(path: Path) -> None:
    migrated(path, HALF_WAY)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO runs (run_uuid, name, start_time) VALUES ('x', 'old', 1)")


def older_without_a_run(path: Path) -> None:
    migrated(path, HALF_WAY)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO experiments (name, lifecycle_stage) VALUES ('mine', 'active')")


def newer(path: Path) -> None:
    Tracker(place(path.parent))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")


def cut(path: Path) -> None:
    Tracker(place(path.parent))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(path, path.stat().st_size // 2)


def garbled(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE mine (x)")
    path.write_bytes(path.read_bytes().replace(b"tablemine", b"table\xffine", 1))


def unsigned(path: Path) -> None:
    older(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM alembic_version")


def other(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE mine (x)")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (older, "mlflow db upgrade sqlite:///"),
        (older_without_a_run, "mlflow db upgrade sqlite:///"),
        (newer, "pip install -U mlflow"),
        (cut, "malformed"),
        (unsigned, "does not say which MLflow made it"),
        (other, "no store of MLflow's"),
        (garbled, "no store of MLflow's"),
        (lambda path: path.write_text("hello, world " * 100), "file is not a database"),
        (lambda path: path.write_bytes(bytes(range(256)) * 40), "file is not a database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\1" * 4096), "damaged"),
    ],
)
def test_a_file_that_is_no_good_store_is_one_line_and_stays_as_it_is(
    tmp_path: Path, make: object, said: str
) -> None:
    path = tmp_path / "mlflow.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(UserError) as refused:
        Tracker(place(tmp_path))
    assert said in str(refused.value) and "right: " in str(refused.value)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_a_store_that_another_program_has_locked_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CONNECT_TIMEOUT_S", 0.1)
    path = tmp_path / "mlflow.db"
    migrated(path, "heads")  # without a write-ahead log, as MLflow's own server makes it
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert store.problem_of(path) is None and not store.is_unmade(path)
        check_store(place(tmp_path))
        db.execute("ROLLBACK")


KILLED_AS_IT_WRITES = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")  # so that it writes before the end of the transaction
db.execute("BEGIN")
db.execute("UPDATE experiments SET name = name || ' half written'")
db.execute("CREATE TABLE half_written AS SELECT zeroblob(1000000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_whose_writer_was_killed_in_the_middle_is_as_it_was_before(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    migrated(path, "heads")  # without a write-ahead log, as MLflow's own server makes it
    Tracker(place(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED_AS_IT_WRITES, path], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    assert store.problem_of(path) is None and not store.is_unmade(path)
    check_store(place(tmp_path))
    assert Tracker(place(tmp_path), make=False).client.get_experiment_by_name("e") is not None


NO_ROOM_FOR_A_CHECKPOINT = """
import os, resource, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("CREATE TABLE large AS SELECT zeroblob(1000000)")
size = os.path.getsize(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    db.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
except sqlite3.OperationalError as error:
    print(error)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_whose_disk_was_full_in_the_middle_of_a_checkpoint_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    run_id = Tracker(place(tmp_path)).create_run(SPOOLED)
    said = subprocess.run(
        [sys.executable, "-c", NO_ROOM_FOR_A_CHECKPOINT, path], stdout=subprocess.PIPE, text=True
    ).stdout
    assert "full" in said or "I/O error" in said
    pages, size = (int.from_bytes(path.read_bytes()[28:32], "big"), path.stat().st_size)
    assert size < 4096 * pages  # the rest is in the write-ahead log
    check_store(place(tmp_path))
    assert Tracker(place(tmp_path), make=False).find_run(run_id)


USED_AND_LEFT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("SELECT count(*) FROM runs").fetchone()
db.close()
"""


def test_a_store_that_was_looked_at_keeps_the_log_that_its_writer_writes_to(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    tracker = Tracker(place(tmp_path))
    tracker.create_run(SPOOLED)
    log = (tmp_path / "mlflow.db-wal").stat().st_ino
    check_store(place(tmp_path))
    Tracker(place(tmp_path), make=False)
    subprocess.run([sys.executable, "-c", USED_AND_LEFT, path], check=True)
    assert (tmp_path / "mlflow.db-wal").stat().st_ino == log


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_stays_as_it_is(tmp_path: Path, make: object) -> None:
    path = tmp_path / "mlflow.db"
    make(path)  # type: ignore[operator]
    kind = path.stat().st_mode
    with pytest.raises(UserError, match="is no file; right: "):
        Tracker(place(tmp_path))
    assert path.stat().st_mode == kind and list(tmp_path.iterdir()) == [path]


def test_a_store_is_made_where_a_link_says(tmp_path: Path) -> None:
    link, folder = tmp_path / "out" / "mlflow.db", tmp_path / "elsewhere"
    link.parent.mkdir()
    link.symlink_to(folder / "real.db")
    run_id = Tracker(place(link.parent)).create_run(SPOOLED)
    assert link.is_symlink() and (folder / "real.db").is_file()
    assert Tracker(place(link.parent), make=False).find_run(run_id)


def test_a_link_to_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UserError, match="is a link to nowhere, which is not there"):
        check_store(place(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command_for_an_older_store_names_the_file_whatever_it_is_called(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a?b%20" / "mlflow.db"
    path.parent.mkdir()
    migrated(tmp_path / "plain.db", HALF_WAY)
    shutil.move(tmp_path / "plain.db", path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO runs (run_uuid, name, start_time) VALUES ('x', 'old', 1)")
    with pytest.raises(UserError) as refused:
        Tracker(place(path.parent))
    words = shlex.split(str(refused.value).partition("then ")[2])
    assert words[:3] == ["mlflow", "db", "upgrade"]
    engine = sqlalchemy.create_engine(words[3])
    assert sqlalchemy.inspect(engine).has_table("runs")
    engine.dispose()


def test_a_file_that_is_no_store_gets_no_lock_beside_it(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    with pytest.raises(UserError, match="file is not a database"):
        Tracker(place(tmp_path / "out", f"sqlite:///{hosts}"))
    assert [p.name for p in tmp_path.iterdir()] == ["hosts"]


def test_a_store_that_is_there_is_opened_without_a_turn_for_it(tmp_path: Path) -> None:
    Tracker(place(tmp_path))
    opened: list[Tracker] = []

    def open_it() -> None:
        opened.append(Tracker(place(tmp_path)))

    with FileLock(tmp_path / ".mlflow.db.lock"):
        opens = threading.Thread(target=open_it, daemon=True)
        opens.start()
        opens.join(30)
        assert opened, "it waits for a process that makes a store"


def test_a_sqlite_store_of_ones_own_keeps_its_artifacts_below_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(place(tmp_path / "out", "sqlite:///mine.db"))
    tracker.log_text(tracker.create_run(SPOOLED), "hello", "words.txt")
    assert {p.name for p in tmp_path.iterdir()} >= {"mine.db", "out"}
    assert not (tmp_path / "mlruns").exists() and list((tmp_path / "out").rglob("words.txt"))
    assert tracker.store.kind == "sqlite"


class Strict(BaseHTTPRequestHandler):
    """Answers as MLflow's server does to whoever calls it by a name that it does not go by."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 403)
        self.end_headers()
        self.wfile.write(INVALID_HOST_MSG.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_does_not_go_by_that_name_is_said_to_with_what_lets_it(
    tmp_path: Path,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strict)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        mend = "mlflow server --allowed-hosts '127.0.0.1,127.0.0.1:"
        with pytest.raises(UserError, match=f"to that name .*right: {mend}"):
            check_store(place(tmp_path, f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()


class Healthy(BaseHTTPRequestHandler):
    """Answers as MLflow's server does, to whoever has the right password."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Basic bWU6czNjcjN0"
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that no authority has signed, with its key in the same file."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(
        now + timedelta(days=1)
    )
    named = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = builder.add_extension(named, critical=False).sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def https(certificate: Path) -> Iterator[str]:
    """The address of a server that speaks TLS, without its scheme."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ThreadingHTTPServer(("localhost", 0), Healthy)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "variable",
    ["REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"],
)
def test_a_server_with_a_certificate_of_ones_own_is_used_as_mlflows_client_is_told(
    tmp_path: Path, certificate: Path, https: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with pytest.raises(StoreAway, match="certificate verify failed"):
        check_store(place(tmp_path, f"https://{https}"))
    told = "true" if variable == "MLFLOW_TRACKING_INSECURE_TLS" else str(certificate)
    monkeypatch.setenv(variable, told)
    with warnings.catch_warnings():  # of requests, about who wants no certificate looked at
        warnings.simplefilter("ignore")
        check_store(place(tmp_path, f"https://me:{SECRET}@{https}"))
        for wrong in (f"https://me:wrong@{https}", f"https://{https}"):
            with pytest.raises(UserError, match="lets nobody in .HTTP 401"):
                check_store(place(tmp_path, wrong))
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").touch()  # which MLflow's client reads
        check_store(place(tmp_path, f"https://{https}"))


@pytest.mark.parametrize("begin", [Tracker, check_store])
def test_a_moved_folder_is_refused_with_both_places(tmp_path: Path, begin: Begin) -> None:
    Tracker(place(tmp_path / "before"))
    shutil.move(tmp_path / "before", tmp_path / "after")
    with pytest.raises(UserError) as refused:
        begin(place(tmp_path / "after"))
    link = f"ln -s {tmp_path / 'after'} {tmp_path / 'before'}"
    assert link in str(refused.value)
    assert not (tmp_path / "before").exists()
    subprocess.run(link.split(), check=True)
    begin(place(tmp_path / "after"))


@pytest.mark.parametrize("begin", [Tracker, check_store])
def test_a_copied_folder_is_refused_with_both_places(tmp_path: Path, begin: Begin) -> None:
    Tracker(place(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    with pytest.raises(UserError, match=f"right: output_dir={tmp_path / 'first'}") as refused:
        begin(place(tmp_path / "copy"))
    assert f"output_dir={tmp_path / 'copy'}: " in str(refused.value)


@pytest.mark.parametrize("begin", [Tracker, check_store])
def test_a_store_of_ones_own_may_be_used_from_several_folders(
    tmp_path: Path, begin: Begin
) -> None:
    uri = f"sqlite:///{tmp_path / 'mine.db'}"
    Tracker(place(tmp_path / "first", uri))
    begin(place(tmp_path / "second", uri))


def test_a_store_without_an_experiment_is_opened_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    store._make_sqlite(path)
    opened: list[Tracker] = []
    with FileLock(tmp_path / ".mlflow.db.lock"):
        opens = threading.Thread(target=lambda: opened.append(Tracker(place(tmp_path))))
        opens.start()
        opens.join(3)
        assert not opened
    opens.join(60)
    assert opened


@pytest.mark.parametrize("begin", [Tracker, check_store])
def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(
    tmp_path: Path, begin: Begin
) -> None:
    tracker = Tracker(place(tmp_path))
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match=r"restore it with `[^`]*`") as refusal:
        begin(place(tmp_path))
    restore = str(refusal.value).split("`")[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(restore, shell=True, check=True, env={**os.environ, "PATH": path})
    begin(place(tmp_path))


@pytest.mark.parametrize("folder", ["n" * 256, "/".join(["n" * 100] * 6)])
def test_a_path_that_is_too_long_is_refused_before_anything_is_made(
    tmp_path: Path, folder: str
) -> None:
    with pytest.raises(UserError, match="File name too long|more than SQLite takes"):
        check_store(place(tmp_path / folder))
    assert not list(tmp_path.iterdir())


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    tracker = Tracker(place(tmp_path))
    tracker.client.rename_experiment(tracker.experiment_id, "renamed")
    with pytest.raises(NothingRecorded, match=r"experiment_name=e is not in .*\(renamed\)"):
        Tracker(place(tmp_path), make=False)


def test_a_store_without_runs_is_named_by_the_key_that_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(NothingRecorded, match="^output_dir=.* holds no runs"):
        Tracker(place(tmp_path), make=False)
    with pytest.raises(NothingRecorded, match="^tracking.uri=sqlite:///.* holds no runs"):
        Tracker(place(tmp_path, f"sqlite:///{tmp_path / 'x.db'}"), make=False)


def test_first_starts_at_once_never_refuse_a_good_folder(tmp_path: Path) -> None:
    refused: list[UserError] = []
    together = threading.Barrier(8)

    def first_start() -> None:
        for turn in range(200):
            folder = tmp_path / str(turn) / "b" / "outputs"
            together.wait()
            try:
                store.check_usable(store.read_address(None, folder), folder)
            except UserError as error:
                refused.append(error)
            folder.mkdir(parents=True, exist_ok=True)

    starts = [threading.Thread(target=first_start) for _ in range(8)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    assert not refused


def test_artifacts_that_lie_on_another_machine_are_no_store_that_is_away(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    tracker = Tracker(place(there))
    run_id = tracker.create_run(SPOOLED)
    tracker.log_text(run_id, "plan", "plans/one.json")
    there.rename(here)  # as a database is reached from a machine without the folder
    uri = f"sqlite:///{here / 'mlflow.db'}"
    with pytest.raises(UserError, match=f"its artifacts, {there}/artifacts, is not on") as told:
        Tracker(place(here, uri)).read_text(run_id, "plans/one.json")
    assert not is_away(told.value) and "right: tracking=server" in str(told.value)


def test_a_server_or_database_that_does_not_answer_is_away(tmp_path: Path) -> None:
    for uri in (f"http://me:{SECRET}@127.0.0.1:9", f"postgresql://me:{SECRET}@127.0.0.1:9/db"):
        began = time.monotonic()
        with pytest.raises(StoreAway) as away:
            store.check_usable(store.read_address(uri, tmp_path), tmp_path)
        assert SECRET not in str(away.value) and time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("why", "raised"),
    [
        ("password authentication failed", UserError),
        ("sorry, too many clients already", StoreAway),
        ("terminating connection due to administrator command", StoreAway),
        ("the database system is in recovery mode", StoreAway),
    ],
)
def test_a_database_that_lets_nobody_in_wants_a_password_or_is_away(
    why: str, raised: type[UserError], tmp_path: Path
) -> None:
    fields = f"SFATAL\0C28P01\0M{why}\0\0".encode()
    refusal = b"E" + (4 + len(fields)).to_bytes(4, "big") + fields  # as PostgreSQL says it

    def refuse() -> None:
        for _ in range(2):  # whether anybody listens, then whether that is a database
            with listening.accept()[0] as asked:
                if asked.recv(8):
                    asked.sendall(b"N")  # no TLS
                    asked.recv(1000)
                    asked.sendall(refusal)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, daemon=True).start()
        uri = f"postgresql://me:{SECRET}@127.0.0.1:{listening.getsockname()[1]}/db"
        with pytest.raises(UserError, match=why) as refused:
            store.check_usable(store.read_address(uri, tmp_path), tmp_path)
    said = str(refused.value)
    assert type(refused.value) is raised and SECRET not in said
    assert ("right: postgresql://USER:PASSWORD@HOST/DATABASE" in said) == (raised is UserError)


def test_a_database_that_takes_a_connection_and_says_nothing_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    monkeypatch.delenv("PGCONNECT_TIMEOUT")  # and away again at the end
    monkeypatch.setattr(store, "CONNECT_TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        uri = f"postgresql://me@127.0.0.1:{listening.getsockname()[1]}/db"
        with pytest.raises(StoreAway, match="timeout expired"):
            store.check_usable(store.read_address(uri, tmp_path), tmp_path)


def _first(folder: Path, begins: Event) -> None:
    begins.set()
    Tracker(place(folder)).create_run(SPOOLED)


@pytest.mark.parametrize("after_s", [0.05, 0.4, 1.0, 1.6])
def test_a_first_start_that_is_killed_leaves_a_store_that_can_be_used(
    tmp_path: Path, after_s: float
) -> None:
    context = processes()
    begins = context.Event()
    killed, again = (context.Process(target=_first, args=(tmp_path, begins)) for _ in range(2))
    killed.start()
    assert begins.wait(60)
    time.sleep(after_s)
    killed.kill()
    ended(killed)
    again.start()
    assert ended(again) == 0
    client = Tracker(place(tmp_path)).client
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1
