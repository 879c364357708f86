"""The database connection and its transactions.

Every transaction runs in a worker thread, because a commit waits for the disk (synchronous=FULL: milliseconds to
tens of them), and one at a time: the limiter has one token.  So a function given to :meth:`Store.transact` sees and
changes the whole database alone; a check and the change that depends on it belong into *one* such function.  Between
two calls anything may have changed.  A transaction that has begun is not abandoned when its task is cancelled.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import trio
from sqlalchemy import Engine, create_engine, event, inspect, select
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from azure_emu.vault.schema import FORMAT_VERSION, Base, FormatRow, ItemRow
from blockfs.errors import RigError

T = TypeVar("T")


class Store:
    """One database.  ``url`` is SQLAlchemy's, e.g. ``sqlite:////path/vault.db`` or ``postgresql+psycopg://...``.

    Errors: ``StateVersion`` (made by another version), ``StateUnreadable`` (no database, or it cannot be opened).
    """

    def __init__(self, url: str) -> None:
        self.full: RigError | None = None
        """What the newest transaction that had something to write failed with, if the host's disk is full."""
        self._limiter = trio.CapacityLimiter(1)
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _configure_sqlite(self._engine)
        try:
            self._open()
        except (DBAPIError, self._engine.dialect.loaded_dbapi.Error) as error:
            self.close()
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise RigError("StateUnreadable", f"the vault's database {self._name()} cannot be opened: {reason}") from error
        except BaseException:
            self.close()
            raise

    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    def _open(self) -> None:
        with Session(self._engine) as session, session.begin():
            if not inspect(session.connection()).has_table(FormatRow.__tablename__):
                Base.metadata.create_all(session.connection())
                session.add(FormatRow(version=FORMAT_VERSION))
                return
            version = session.scalars(select(FormatRow.version)).one()
        if version != FORMAT_VERSION:
            raise RigError(
                "StateVersion",
                f"the vault's database {self._name()} has format version {version}; this program reads and writes only "
                f"version {FORMAT_VERSION}",
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    async def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        ``DiskFull`` (recoverable): nothing was changed, for there is no room to write it.
        """

        def run() -> T:
            try:
                with Session(self._engine, expire_on_commit=False) as session, session.begin():
                    before = _changes(session)
                    result = work(session)
                    wrote = _changes(session) != before
            except OperationalError as error:
                if not _is_full(error):
                    raise
                self.full = RigError(
                    "DiskFull", f"the vault's database {self._name()}: the host's disk is full", recoverable=True
                )
                raise self.full from error
            if wrote:
                self.full = None
            return result

        return await trio.to_thread.run_sync(run, limiter=self._limiter)


def _is_full(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    # The second: where SQLite makes the index of its log longer.
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def _changes(session: Session) -> int:
    """Rows changed so far through the session's connection; a database without such a counter never counts."""
    session.flush()
    return int(getattr(session.connection().connection.dbapi_connection, "total_changes", 0))


def _configure_sqlite(engine: Engine) -> None:
    """Durable, checked, and with transactions that begin when we say so (DDL included)."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin or commit by itself
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # IMMEDIATE: a second process on the same file waits at the start instead of failing at its first write.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def find_item(session: Session, vm: str) -> ItemRow:
    """The protected item of a VM; ``VmNotFound`` names those there are."""
    item = session.get(ItemRow, vm)
    if item is None:
        known = ", ".join(session.scalars(select(ItemRow.vm).order_by(ItemRow.vm))) or "none"
        raise RigError("VmNotFound", f"VM {vm!r} is not protected; protected VMs: {known}")
    return item
