"""The data keys of a vault: rows of its database, each encrypted by a version of the vault's key.

Fault contract: a data key is committed before it is given out, so every key that has encrypted anything can be given out
again.  A rotation makes the new version durable first, then encrypts all data keys with it in one transaction; a kill in
between leaves data keys with the old version, which the next start encrypts again.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import DataKeyRow
from siterig.azure_emu.vault.keys.key_file import KeyFile
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.data_keys import DataKeyGrant, DataKeys
from siterig.blockfs.transfer.envelope import DataKey

Use = Literal["part", "disk"]
_KEY = select(DataKeyRow).where(
    DataKeyRow.use == bindparam("use"),
    DataKeyRow.disk_id == bindparam("disk_id"),
    DataKeyRow.generation == bindparam("generation"),
)
_SECRET_BYTES: dict[Use, int] = {"part": 32, "disk": 64}


@dataclass(frozen=True, slots=True)
class Rotation:
    """The result of a rotation: the new version, and the numbers of data keys that it encrypts and that it could not."""

    version: int
    encrypted: int
    left: int


class DataKeyStore(DataKeys):
    """The data keys of one vault, and the file with the keys that encrypt them.

    The methods with a session belong in a transaction of the vault's database; transactions are serial, so the file has one
    writer.
    """

    def __init__(self, database: VaultDatabase, path: Path, clock: Clock) -> None:
        """Open the file of the vault's keys, or make a new one for a vault that has no data keys.

        Raises:
            RigError: ``KeysUnreadable``, ``StateVersion``.
        """
        self._database = database
        with Session(database.engine) as session, session.begin():
            self._file = _open(session, path, clock)
            if not self._file.is_revoked(self._file.current.version):
                self._wrap_again(session)

    async def part_key(self, *, disk_id: str, generation: int) -> DataKeyGrant:
        uuid.UUID(disk_id)
        return await self._granted("part", disk_id, generation)

    async def disk_key(self, *, disk_id: str) -> DataKeyGrant:
        uuid.UUID(disk_id)
        return await self._granted("disk", disk_id, 0)

    async def _granted(self, use: Use, disk_id: str, generation: int) -> DataKeyGrant:
        values = {"use": use, "disk_id": disk_id, "generation": generation}
        row = await self._database.known(
            ("data key", use, disk_id, generation), lambda session: session.scalars(_KEY, values).one_or_none()
        )
        if row is None:
            key = await self._database.transact(lambda session: self._get(session, use, disk_id, generation))
        else:
            key = self._unwrap(row)  # not a part of the answer: the version may be revoked meanwhile
        return DataKeyGrant(key_id=str(key.key_id), secret_hex=key.secret.hex())

    def keys(self) -> KeyFile:
        """Return the key-encryption keys."""
        return self._file

    def counts(self, session: Session) -> Counter[int]:
        """Return the number of data keys that each version encrypts."""
        query = select(DataKeyRow.wrapped_by, func.count()).group_by(DataKeyRow.wrapped_by)
        counts: Counter[int] = Counter()
        for version, count in session.execute(query):
            counts[version] = count
        return counts

    def rotate(self, session: Session) -> Rotation:
        """Draw a new version and encrypt all data keys with it; the data stay as they are."""
        version = self._file.add()
        encrypted, left = self._wrap_again(session)
        return Rotation(version, encrypted, left)

    def _wrap_again(self, session: Session) -> tuple[int, int]:
        """Encrypt all data keys with the newest version; return the numbers of those that were and could not be."""
        encrypted = left = 0
        for row in session.scalars(select(DataKeyRow).where(DataKeyRow.wrapped_by != self._file.current.version)):
            try:
                row.wrapped_by, row.wrapped = self._file.wrap(self._unwrap(row), _text(row))
            except RigError as exc:
                if exc.code not in (Code.KeyRevoked, Code.KeyMissing):
                    raise
                left += 1
            else:
                encrypted += 1
        return encrypted, left

    def _get(self, session: Session, use: Use, disk_id: str, generation: int) -> DataKey:
        row = session.scalars(_KEY, {"use": use, "disk_id": disk_id, "generation": generation}).one_or_none()
        if row is not None:
            return self._unwrap(row)
        key = DataKey.generate(_SECRET_BYTES[use])
        row = DataKeyRow(key_id=str(key.key_id), use=use, disk_id=disk_id, generation=generation)
        row.wrapped_by, row.wrapped = self._file.wrap(key, _text(row))
        session.add(row)
        return key

    def _unwrap(self, row: DataKeyRow) -> DataKey:
        return self._file.unwrap(DataKey(uuid.UUID(row.key_id), row.wrapped), _text(row), row.wrapped_by)


def delete_data_keys(session: Session, disk_id: str) -> None:
    """Delete the keys of a disk, whose encrypted data are deleted."""
    session.execute(delete(DataKeyRow).where(DataKeyRow.disk_id == disk_id))


def _open(session: Session, path: Path, clock: Clock) -> KeyFile:
    try:
        return KeyFile.load(path, clock)
    except FileNotFoundError:
        count = session.scalar(select(func.count()).select_from(DataKeyRow)) or 0
        if count:
            raise RigError(
                Code.KeysUnreadable,
                f"the file of the vault's keys {path} is missing, and {count} data keys of the vault's database need it: "
                "restore the file",
            ) from None
        return KeyFile.create(path, clock)


def _text(row: DataKeyRow) -> str:
    """Return the text that names the data of a key; it is authenticated together with the key's id."""
    return f"{row.use} {row.disk_id} {row.generation}"
