"""The database connection, its transactions, and what happens to a database of an older version.

Every transaction runs in a worker thread, because a commit waits for the disk (synchronous=FULL: milliseconds to tens of
milliseconds), and one at a time: the limiter has one token.  So a function that is given to :meth:`VaultDatabase.transact`
has the whole database for itself; a check and the change that depends on it belong into *one* such function.  Between two
calls any row can change.  Cancelling a task does not abandon a transaction that has begun.

A question that is asked again and again is not: :meth:`VaultDatabase.known` returns the former answer, without a thread and
without a statement, while no transaction has changed its tables (known_answers.py).  All transactions use one connection.

SQLite keeps the index of its write-ahead log in the memory of this process, not in a mapped file: a store to a mapped page
for which a full disk has no block ends the process by SIGBUS.  So no other process can open the database meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
import trio
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.moments import VaultMoment
from siterig.azure_emu.vault.db import migrations
from siterig.azure_emu.vault.db.known_answers import KnownAnswers
from siterig.azure_emu.vault.db.moments import MomentLog, MomentSession
from siterig.azure_emu.vault.db.schema import FORMAT_VERSION, Base, FormatRow, ItemRow
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import sync_folder

T = TypeVar("T")
_log = structlog.get_logger()


class VaultDatabase:
    """One database.  ``url`` is SQLAlchemy's, e.g. ``sqlite:////path/vault.db`` or ``postgresql+psycopg://...``.

    It may be an engine, too, for a process with many vaults, whose engines share their compiled statements.

    A database of an older version is migrated (migrations/), after a copy of it was written to ``vault.db.version-N``.
    Errors: ``StateVersion`` (the version is newer, or too old), ``StateUnreadable`` (this is no database, or it cannot be
    opened or migrated), ``DiskFull`` (recoverable: no room to migrate).  After an error the database is as it was.
    """

    def __init__(self, url: str | Engine) -> None:
        self.full: RigError | None = None
        """The error of the newest transaction with changes, if it failed because the host's disk is full; else None."""
        self.moments = MomentLog()
        """The events, jobs and tasks that committed transactions wrote."""
        self.observers: list[Callable[[list[VaultMoment]], None]] = []
        """Called on the trio thread after each transaction that wrote, with its moments."""
        self._limiter = trio.CapacityLimiter(1)
        self._connection: Connection | None = None
        """The connection of all transactions; a new one after an error of the database."""
        self.engine = create_engine(url) if isinstance(url, str) else url
        self._answers = KnownAnswers(self.engine, Base.metadata)
        if self.engine.dialect.name == "sqlite":
            _configure_sqlite(self.engine)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of the database and the file system as ``StateUnreadable`` or ``DiskFull``."""
        try:
            yield
        except (DBAPIError, self.engine.dialect.loaded_dbapi.Error, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            if _is_full(reason):
                raise self._disk_full() from error
            raise RigError(
                Code.StateUnreadable, f"the vault's database {self._name()} cannot be opened: {reason}"
            ) from error

    def _disk_full(self) -> RigError:
        return RigError(Code.DiskFull, f"the vault's database {self._name()}: the host's disk is full", recoverable=True)

    def _name(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)

    def _open(self) -> None:
        with Session(self.engine) as session, session.begin():
            if not inspect(session.connection()).has_table(FormatRow.__tablename__):
                Base.metadata.create_all(session.connection())
                session.add(FormatRow(version=FORMAT_VERSION))
                migrations.stamp_newest(session.connection(), FORMAT_VERSION)
                return
            version = session.scalars(select(FormatRow.version)).one()
        if not migrations.OLDEST_VERSION <= version <= FORMAT_VERSION:
            raise RigError(
                Code.StateVersion,
                f"the vault's database {self._name()} has format version {version}; this program reads versions "
                f"{migrations.OLDEST_VERSION} to {FORMAT_VERSION}: use the siterig that created it",
            )
        if version < FORMAT_VERSION:
            self._migrate(version)

    def _migrate(self, version: int) -> None:
        with self.engine.connect() as connection:
            try:
                _switch_foreign_keys_off(connection)
                with connection.begin():  # no other writer from here on, so the copy equals the migrated database
                    if self.engine.url.database and self.engine.dialect.name == "sqlite":
                        _copy_database(Path(self.engine.url.database), version)
                    migrations.upgrade(connection, FORMAT_VERSION)
                    _check_references(connection)
            finally:
                connection.invalidate()  # the next connection checks foreign keys
        _log.info("vault_database_migrated", database=self._name(), before=version, after=FORMAT_VERSION)

    def close(self) -> None:
        """Close all connections."""
        self._disconnect()
        self.engine.dispose()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def transact(self, work: Callable[[Session], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        Raises:
            RigError: ``DiskFull`` (recoverable) if there is no room for the changes; nothing was changed.
        """

        return await self._run(work, None)

    async def known(self, key: Hashable, question: Callable[[Session], T]) -> T:
        """Return the answer to a question about rows, which is read again only after a change of one of its tables.

        Args:
            key: names the question with its arguments.
            question: reads rows, in a transaction; its answer must depend on nothing else, and must not be changed.
        """
        known = self._answers.get(key)
        if known is None:
            return await self._run(question, key)
        await trio.lowlevel.checkpoint()
        return cast(T, known.value)

    async def _run(self, work: Callable[[Session], T], key: Hashable | None) -> T:
        def run() -> tuple[T, list[VaultMoment], bool]:
            self._answers.begin()
            try:
                result, moments, wrote = self._committed(work)
            except (OperationalError, self.engine.dialect.loaded_dbapi.Error) as error:
                reason = error.orig if isinstance(error, DBAPIError) else error
                if not _is_full(reason):
                    raise
                self.full = self._disk_full()
                raise self.full from error
            finally:
                self._answers.end()
            if wrote:
                self.full = None
            if key is not None:
                self._answers.keep(key, result)
            return result, moments, wrote or bool(moments)

        result, moments, wrote = await trio.to_thread.run_sync(run, limiter=self._limiter)
        self.moments.note(moments)
        if wrote:
            for observe in self.observers:
                observe(moments)
        return result

    def _committed(self, work: Callable[[Session], T]) -> tuple[T, list[VaultMoment], bool]:
        """Run ``work`` and commit; return its result, the moments, and whether it has changed rows."""
        connection = self._connection = self._connection or self.engine.connect()
        try:
            with MomentSession(connection) as session, session.begin():
                raw = connection.connection.dbapi_connection
                before = getattr(raw, "total_changes", 0)  # a database without such a counter is never found full
                result = work(session)
                session.flush()
                return result, session.moments(), getattr(raw, "total_changes", 0) != before
        except (DBAPIError, self.engine.dialect.loaded_dbapi.Error):
            with contextlib.suppress(Exception):
                connection.invalidate()
            self._disconnect()
            raise


def _is_full(error: BaseException | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _switch_foreign_keys_off(connection: Connection) -> None:
    """Switch foreign keys off for this connection, outside a transaction, because SQLite ignores the setting in one."""
    raw = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite" and raw is not None:
        raw.cursor().execute("PRAGMA foreign_keys = OFF")


def _check_references(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
    if dangling:
        raise RigError(Code.StateUnreadable, f"the vault's database: rows refer to missing rows: {dangling[:3]}")


def _copy_database(database: Path, version: int) -> None:
    """Write ``NAME.version-N`` next to a database without writers; the copy is durable, and complete or absent."""
    copy = database.with_name(f"{database.name}.version-{version}")
    unfinished = database.with_name(f"{copy.name}.new")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"{_uri(database)}&mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(unfinished)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without a write-ahead log
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(copy)
    sync_folder(copy.parent)


def _uri(database: Path) -> str:
    """Return the URI by which a process has the database for itself, and no mapped file (sqlite.org/vfs.html, unix-excl)."""
    return f"{database.absolute().as_uri()}?vfs=unix-excl"


def _configure_sqlite(engine: Engine) -> None:
    """Make commits durable, check foreign keys, and begin transactions explicitly (DDL included)."""

    @event.listens_for(engine, "do_connect")
    def _connecting(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        if engine.url.database:
            arguments[0], options["uri"] = _uri(Path(engine.url.database)), True

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin or commit by itself
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # IMMEDIATE: a second connection on the same file waits at the start instead of failing at its first write.
        connection.connection.dbapi_connection.execute("BEGIN IMMEDIATE").close()


def find_item(session: Session, vm: str) -> ItemRow:
    """Return the protected item of a VM (``VmNotFound`` names the protected VMs)."""
    item = session.get(ItemRow, vm)
    if item is None:
        known = ", ".join(session.scalars(select(ItemRow.vm).order_by(ItemRow.vm))) or "none"
        raise RigError(Code.VmNotFound, f"VM {vm!r} is not protected; protected VMs: {known}")
    return item
