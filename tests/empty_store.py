"""MLflow's tables of an empty store, made once a process."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache


@cache
def migrate_once() -> None:
    """Have MLflow's migrations run now; each new SQLite store of this process gets what they made.

    They take more than a second of CPU, for most tests the larger part of making a store.
    """
    import mlflow.store.db.utils as stores
    import sqlalchemy

    initialize = stores._initialize_tables
    migrated = sqlite3.connect(":memory:", check_same_thread=False)
    initialize(
        sqlalchemy.create_engine(
            "sqlite://", creator=lambda: migrated, poolclass=sqlalchemy.StaticPool
        )
    )

    def copy(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
            return initialize(engine)
        with closing(engine.raw_connection()) as connection:
            migrated.backup(connection.driver_connection)

    stores._initialize_tables = copy
