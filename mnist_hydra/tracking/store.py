"""Where MLflow keeps its records: an address is read in one place, and a store opened in one.

Nothing here prints or records a password, and nothing is made before it is known to be right.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shlex
import socket
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

from filelock import FileLock

from mnist_hydra.errors import StoreAway, UserError
from mnist_hydra.secrets import address_without_password, without_password
from mnist_hydra.whole_file import whole_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
STILL_S = 10.0
"""A half made store that has not changed for so long is nobody's."""
DRIVERS = {"postgresql": "psycopg2", "mysql": "mysqldb", "mssql": "pyodbc"}
"""What is taken where an address names none: SQLAlchemy's own choice differs by version."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
PACKAGES = {"psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient"}
"""What pip calls a driver, where that is another name."""
STAYS_IN_TOUCH = {
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""How psycopg2 notices within 20 s that a PostgreSQL is gone from the network; else it may take two
hours. Milliseconds in the last, seconds in the others.
"""
BUSY = (
    *("starting up", "shutting down", "recovery mode", "terminating connection"),
    *("too many", "slots are reserved", "timeout expired", "closed the connection"),
)
"""What is said of a PostgreSQL that lets nobody in just now."""
MAKING = 0x6D6E697374
"""The number of PostgreSQL's lock that one process holds while it makes a store's tables."""
RIGHTS = {
    "NOT has_schema_privilege(current_schema(), 'CREATE')": "CREATE ON SCHEMA {}",
    "NOT (has_table_privilege(to_regclass('runs')::oid, 'INSERT')"
    " AND has_table_privilege(to_regclass('runs')::oid, 'UPDATE'))": (
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {}"
    ),
    "NOT has_sequence_privilege(to_regclass('experiments_experiment_id_seq')::oid, 'USAGE')": (
        "USAGE ON ALL SEQUENCES IN SCHEMA {}"
    ),
}
"""What PostgreSQL may refuse a user who writes, and what to grant then. The first is asked where
there are no tables yet, the others where there are.
"""
MADE_BY_PEOPLE = {
    "runs": "1",
    "experiments": "name != 'Default'",
    "registered_models": "1",
    "trace_info": "1",
}
"""Tables of a store that is worth keeping, and which of their rows MLflow does not make itself."""
ESCAPES = "a / @ or : of a password is written %2F %40 %3A"
RIGHT = "http://HOST:PORT, sqlite:///FILE, postgresql://USER@HOST/DATABASE, or tracking=local"
LONGEST = 504
"""Bytes of the longest path that SQLite opens."""
DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What sqlite3 raises over a damaged file; the second where a name in it is no text."""


@dataclass(frozen=True)
class Store:
    """A store's address, read."""

    kind: str
    """`sqlite`, `database` or `server`."""
    uri: str
    """As MLflow takes it; of SQLite see `sqlite_uri`."""
    shown: str
    """The same for people: without a password."""
    path: Path | None = None
    """SQLite's file."""
    artifacts: str | None = None
    """The address of the folder that new experiments keep their artifacts in; `None` leaves that to
    the server.
    """
    user: str | None = None
    password: str | None = None
    """Of a server; MLflow takes them from the environment."""


def read_address(uri: str | None, output_dir: Path) -> Store:
    """Read `tracking.uri`; nothing is looked up.

    Args:
        uri: `None` is the SQLite file below `output_dir`.
        output_dir: absolute.

    Raises:
        UserError: naming what is wrong with it, without its password.
    """
    artifacts = (output_dir / "artifacts").as_uri()
    if uri is None:
        return _sqlite(output_dir / "mlflow.db", artifacts)
    shown = address_without_password(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:  # what it says may hold the password
        raise _wrong(shown, f"its host or port cannot be read; {ESCAPES}") from None
    scheme, _, driver = parts.scheme.partition("+")
    if any(c.isspace() or not c.isprintable() for c in uri):
        raise _wrong(shown, "it holds a blank or a control character")
    if scheme == "sqlite":
        return _sqlite(_file_of(uri, shown), artifacts)
    if "@" in parts.path:  # the host would be a part of the password
        raise _wrong(shown, ESCAPES)
    if scheme in ("http", "https") and not driver:
        if not parts.hostname:
            raise _wrong(shown, "it names no host")
        if parts.query:
            raise _wrong(shown, "what is behind ? is not taken")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        where = host if port is None else f"{host}:{port}"
        address = f"{scheme}://{where}{parts.path.rstrip('/')}"
        user = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        return Store("server", address, address, user=user, password=password)
    if scheme in DRIVERS:
        if not parts.hostname or not parts.path.strip("/"):
            raise _wrong(shown, "it names no host or no database")
        with_driver = f"{scheme}+{driver or DRIVERS[scheme]}:{uri.partition(':')[2]}"
        if (driver or DRIVERS[scheme]) == "psycopg2":
            missing = {k: v for k, v in STAYS_IN_TOUCH.items() if f"{k}=" not in parts.query}
            with_driver += f"{'&' if parts.query else '?'}{urlencode(missing)}" if missing else ""
        return Store("database", with_driver, without_password(uri), artifacts=artifacts)
    if not uri:
        raise _wrong(shown, "it is empty")
    if scheme == "file" or "://" not in uri:
        raise _wrong(shown, "a folder of files is no database, which a sweep needs")
    raise _wrong(shown, f"{parts.scheme} is no kind of store that is known here")


def _sqlite(path: Path, artifacts: str) -> Store:
    return Store("sqlite", f"sqlite:///{path}", f"sqlite:///{path}", path, artifacts)


def _file_of(uri: str, shown: str) -> Path:
    """The file that a SQLite address names."""
    name = uri.partition("///")[2] if uri.lower().startswith("sqlite:///") else ""
    if not name or name.startswith((":memory:", "file:")) or name.endswith("/"):
        raise _wrong(shown, "it names no file")
    if "?" in name:
        raise _wrong(shown, "options behind ? are not taken")
    return Path(os.path.expanduser(name)).absolute()


def _wrong(shown: str, why: str) -> UserError:
    return UserError(f"tracking.uri={shown} is no address of a store ({why}); right: {RIGHT}")


def shown_address(uri: str | None) -> str | None:
    """An address without its password; `None` for the store below `output_dir`."""
    return None if uri is None else read_address(uri, Path.cwd()).shown


def check_usable(store: Store, output_dir: Path, *, write: bool = True) -> None:
    """See that runs can be recorded, and leave nothing behind; takes no MLflow.

    Args:
        write: whether a database's user must be one who may write.

    Raises:
        StoreAway: the server or the database does not answer.
        UserError: a folder cannot be written, or the file is no store that can be used.
    """
    _check_folder("output_dir", output_dir)
    if store.path is not None:
        if (length := len(os.fsencode(store.path))) > LONGEST:
            raise UserError(
                f"{store.path} has {length} bytes, more than SQLite takes in a file's path; right: "
                f"another tracking.uri or output_dir, for at most {LONGEST}"
            )
        folder = Path(os.path.realpath(store.path)).parent
        if folder != output_dir:
            _check_folder(f"tracking.uri={store.shown}: its folder", folder)
        problem = problem_of(store.path)
        if problem is not None:
            raise UserError(problem)
    elif store.kind == "server":
        _check_server(store)
    else:
        _check_database(store, write)


def _check_folder(key: str, folder: Path) -> None:
    """Make and remove a folder of a name of its own where `folder` is or would be made."""

    def cannot(why: str | None) -> UserError:
        return UserError(f"{key}={folder} cannot be written ({why}); right: a folder that can")

    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name of 256 bytes
        raise cannot(error.strerror) from None
    for there in (folder, *folder.parents):
        if there.is_symlink() and not there.exists():
            raise cannot(f"{there} is a link to {os.readlink(there)}, which is not there")
        if not there.exists():
            continue
        try:
            tempfile.TemporaryDirectory(dir=there, prefix=".mnist_hydra-").cleanup()
            return
        except OSError as error:
            if there.exists():  # and was not removed by another process just now
                raise cannot(error.strerror) from None


def _check_server(store: Store) -> None:
    """One request first: MLflow's own client would try again for minutes.

    It is made as that client makes its own, with `requests` and with the same variables, for
    something that the server guards: anybody may ask it for its health, by any name.
    """
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    try:
        with requests.get(
            f"{store.uri}/api/2.0/mlflow/experiments/search?max_results=1",
            headers=_authorization(store),
            timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S),
            verify=not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True),
            cert=os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"),
            stream=True,
        ) as answer:
            said = f"HTTP {answer.status_code} {answer.reason}"
            body = next(answer.iter_content(200), b"") if answer.status_code == 403 else b""
    except (OSError, ValueError) as error:
        reason: BaseException = error
        while type(reason).__module__.startswith(("requests", "urllib3")):  # who say it at length
            if (before := reason.__cause__ or reason.__context__) is None:
                break
            reason = before
        if isinstance(reason, socket.gaierror):
            raise _wrong(store.shown, str(reason.strerror)) from None
        raise _away(store, reason) from None
    if answer.status_code >= 500:
        raise _away(store, said)
    if b"Invalid Host" in body:
        host = urlsplit(store.uri).hostname
        raise UserError(
            f"tracking.uri={store.shown}: the server does not answer to that name ({said}); right: "
            f"mlflow server --allowed-hosts '{host},{host}:*,localhost:*'"
        )
    if answer.status_code in (401, 403) and not _may_be_let_in_otherwise(store):
        raise UserError(
            f"tracking.uri={store.shown} lets nobody in ({said}); right: "
            f"tracking.uri=http://USER:PASSWORD@HOST, or MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD in the environment"
        )


def _may_be_let_in_otherwise(store: Store) -> bool:
    """Whether MLflow's client may name itself in a way that is not looked for here."""
    if _authorization(store):
        return False
    ways = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
    kept = Path("~/.mlflow/credentials").expanduser().exists()
    plugins = entry_points(group="mlflow.request_header_provider")
    return kept or bool(plugins) or any(os.environ.get(name) for name in ways)


def _authorization(store: Store) -> dict[str, str]:
    """The header by which MLflow's client names itself, too."""
    user = store.user or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = store.password or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        both = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {both}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_database(store: Store, write: bool) -> None:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    # PostgreSQL's driver would wait for ever for an answer, here and wherever MLflow asks.
    os.environ.setdefault("PGCONNECT_TIMEOUT", f"{CONNECT_TIMEOUT_S:.0f}")
    parts = urlsplit(store.uri)
    scheme, _, driver = parts.scheme.partition("+")
    try:
        engine = sqlalchemy.create_engine(store.uri)
    except ImportError:
        package = PACKAGES.get(driver, driver)
        needs = f"tracking.uri={store.shown} needs a driver; right: pip install {package}"
        raise UserError(needs) from None
    except Exception:  # of SQLAlchemy's many: no such dialect, no such driver, no URL
        raise _wrong(store.shown, f"SQLAlchemy knows no driver called {driver}") from None
    if engine.dialect.is_async:
        raise _wrong(store.shown, f"{driver} is a driver for asynchronous programs")
    try:
        address = (str(parts.hostname), parts.port or PORTS[scheme])
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except socket.gaierror as error:
        raise _wrong(store.shown, str(error.strerror)) from None
    except OSError as error:
        raise _away(store, error) from None
    try:
        with engine.connect() as connection:
            made = sqlalchemy.inspect(connection).has_table("alembic_version")
            lacks = list(RIGHTS)[1:] if made else list(RIGHTS)[:1]
            for lack in lacks if write and scheme == "postgresql" else ():
                names = "quote_ident(current_user), quote_ident(current_schema())"
                query = sqlalchemy.text(f"SELECT {names} WHERE {lack}")
                if found := connection.execute(query).first():
                    grant = f"GRANT {RIGHTS[lack].format(found[1])} TO {found[0]}"
                    raise UserError(
                        f"tracking.uri={store.shown}: its user may not write there; right, said by "
                        f"the database's owner: {grant}"
                    )
            if not made:
                return
            query = sqlalchemy.text("SELECT version_num FROM alembic_version")
            revision = connection.execute(query).scalar()
    except SQLAlchemyError as error:
        why = without_password(str(getattr(error, "orig", error)).strip().splitlines()[0])
        if any(words in why for words in BUSY):
            raise _away(store, why) from None
        raise UserError(
            f"tracking.uri={store.shown} does not let this program in ({why}); right: "
            f"{scheme}://USER:PASSWORD@HOST/DATABASE of a user and a database that are there"
        ) from None
    finally:
        engine.dispose()
    if revision is not None and revision not in revisions()[1]:
        raise UserError(f"tracking.uri={_problem_of_revision(str(revision), store.shown)}")


def _away(store: Store, why: object) -> StoreAway:
    return StoreAway(
        f"tracking.uri={store.shown} does not answer ({why}); right: the address of a running "
        f"MLflow server or database, or tracking=local"
    )


def problem_of(path: Path) -> str | None:
    """What keeps a SQLite file from being used as a store, and what mends it; `None` for nothing.

    No file, an empty one, and one that MLflow was killed over before it held a run, are none: they
    are made anew.
    """
    if is_unmade(path):
        return None
    right = "right: another tracking.uri or output_dir, or a copy of the file that is whole"
    if not path.is_file():
        return f"{path} is no file; {right}"
    try:
        with closing(_opened(path)) as store:
            revision = store.execute("SELECT version_num FROM alembic_version").fetchone()
            store.execute("SELECT count(*) FROM experiments").fetchone()
    except DAMAGED as error:
        if isinstance(error, sqlite3.OperationalError) and is_busy(error):
            return None  # whoever opens it waits for that
        return f"{path} is damaged or no store of MLflow's ({error}); {right}"
    if revision is None:
        return f"{path} is damaged (it does not say which MLflow made it); {right}"
    if revision[0] in revisions()[1]:
        return None
    return _problem_of_revision(revision[0], sqlite_uri(path))


def is_busy(error: BaseException) -> bool:
    """Whether an error says that another process writes to a SQLite store just now."""
    return "database is locked" in str(error)


def _problem_of_revision(revision: str, address: str) -> str:
    """What is wrong with a store whose revision is not the newest."""
    if revision in revisions()[0]:
        return (
            f"{address} was made by an older MLflow; right: keep a copy of it, then "
            f"mlflow db upgrade {shlex.quote(address)}"
        )
    return (
        f"{address} was made by a newer MLflow (revision {revision}); right: pip install -U mlflow"
    )


def experiment_in(path: Path, name: str) -> tuple[str, str, str] | None:
    """Id, stage and artifacts' address of an experiment in a SQLite store; takes no MLflow.

    `None` if there is none of that name, or the store cannot be read now.
    """
    which = "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments"
    with suppress(*DAMAGED), closing(_opened(path)) as store:
        found = store.execute(f"{which} WHERE name = ?", (name,)).fetchone()
        return None if found is None else (str(found[0]), str(found[1]), str(found[2]))
    return None


def is_unmade(path: Path) -> bool:
    """Whether there is no store yet: no file, or one that MLflow was killed over as it made it, and
    that holds no run, nor anything else that people make.
    """
    if not os.path.exists(path):  # a name may be too long to be asked for
        return True
    if not path.is_file():  # such as /dev/null
        return False
    if path.stat().st_size == 0:
        return True
    known, newest = revisions()
    with suppress(*DAMAGED), closing(_opened(path)) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        if not tables & {"experiments", "alembic_version"}:
            return False
        for table, which in MADE_BY_PEOPLE.items():
            query = f"SELECT 1 FROM {table} WHERE {which} LIMIT 1"
            if table in tables and store.execute(query).fetchone():
                return False
        if "alembic_version" not in tables:
            return True
        found = store.execute("SELECT version_num FROM alembic_version").fetchone()
        return found is None or (found[0] in known and found[0] not in newest)
    return False


def _is_in_the_making(path: Path) -> bool:
    """Whether somebody else, such as MLflow's own server, makes a store there just now."""
    with suppress(FileNotFoundError):
        # Of a file from the future, as where the clock was wrong, nothing is known to go on.
        return abs(time.time() - path.stat().st_mtime) < STILL_S and is_unmade(path)
    return False


@cache
def revisions() -> tuple[frozenset[str], frozenset[str]]:
    """The revisions of a store's tables that this MLflow knows, and the newest of them.

    They are read from its files: to import them takes longer than to train an epoch.
    """
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    known: set[str] = set()
    before: set[str] = set()
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        known |= set(re.findall(r"^revision\b[^=]*= [\"'](\w+)", text, re.M))
        before |= set(re.findall(r"^down_revision\b[^=]*= [\"'](\w+)", text, re.M))
    return frozenset(known), frozenset(known - before)


def open_store(store: Store) -> MlflowClient:
    """MLflow's client of a store, which is made where it is SQLite's and not there.

    Any number of processes may do so at once.
    """
    from mlflow import MlflowClient

    if store.password is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = store.user or ""
        os.environ["MLFLOW_TRACKING_PASSWORD"] = store.password
    if store.kind == "database":
        return _open_database(store.uri)
    if store.path is None:
        return MlflowClient(store.uri)
    path = Path(os.path.realpath(store.path))
    if is_unmade(path) or not _has_an_experiment(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One process at a time: MLflow's migration takes no two.
        with FileLock(path.with_name(f".{path.name}.lock")):
            while _is_in_the_making(path):
                time.sleep(0.5)
            if is_unmade(path):
                _make_sqlite(path)
            if not _has_an_experiment(path):
                return MlflowClient(sqlite_uri(store.path))  # which makes MLflow's own
    return MlflowClient(sqlite_uri(store.path))


def _open_database(uri: str) -> MlflowClient:
    """MLflow's client of a database, which makes the tables of one that is empty.

    One process at a time, on PostgreSQL: of two that make them at once one fails.
    """
    import sqlalchemy
    from mlflow import MlflowClient

    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as database:
            query = sqlalchemy.text("SELECT 1 FROM experiments LIMIT 1")  # MLflow's own comes last
            has_tables = sqlalchemy.inspect(database).has_table("experiments")
            is_made = has_tables and database.scalar(query) is not None
        if is_made or engine.dialect.name != "postgresql":
            return MlflowClient(uri)
        # A transaction that has read a table would keep MLflow from altering it.
        with engine.begin() as transaction:
            transaction.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({MAKING})"))
            return MlflowClient(uri)
    finally:
        engine.dispose()


def sqlite_uri(path: Path) -> str:
    """A file's address as SQLAlchemy takes it, whatever characters are in its name.

    The plain form is kept where it means the file. SQLAlchemy 2.1 reads `%20` in it as a blank,
    2.0 does not, and both take what follows `?` for options.
    """
    from sqlalchemy import URL, make_url

    plain = f"sqlite:///{path}"
    if "?" not in plain and make_url(plain).database == str(path):
        return plain
    escaped = f"file:{quote(str(path))}"
    url = URL.create("sqlite+pysqlite", database=escaped, query={"uri": "true"})
    return url.render_as_string()


def _make_sqlite(path: Path) -> None:
    """Make a store beside `path` and move it there when it is whole.

    MLflow's own 67 migrations run in memory: on a busy disk they take most of a minute, and one
    that is killed among them can never be finished.
    """
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine("sqlite://")
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
        memory = cast(sqlite3.Connection, engine.raw_connection().driver_connection)
        with whole_file(path) as beside:
            with closing(sqlite3.connect(beside)) as disk:
                memory.backup(disk)
                disk.execute("PRAGMA journal_mode=WAL")  # readers and a writer side by side
            for suffix in ("-wal", "-shm"):  # of a file that was half made
                path.with_name(path.name + suffix).unlink(missing_ok=True)
    finally:
        engine.dispose()


def _has_an_experiment(path: Path) -> bool:
    with closing(_opened(path)) as store:
        return store.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to read a file that is there, after what a killed process has half written was
    undone.

    No part of the program may open the file but through SQLite: to close it would release the locks
    of this process, and another one would take away the log that is still written to.
    https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """

    def connected(mode: str) -> sqlite3.Connection:
        address = f"file:{quote(str(path))}?mode={mode}"
        return sqlite3.connect(address, uri=True, timeout=CONNECT_TIMEOUT_S)

    reader = connected("ro")
    try:
        reader.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:  # of others the caller will hear
        if "readonly" in str(error):
            with closing(connected("rw")) as writer:
                writer.execute("PRAGMA schema_version").fetchone()
    return reader
