"""The operations on the vault's key, whose versions encrypt the keys of all data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.rig_clock import RIG
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import DiskRow
from siterig.azure_emu.vault.keys.data_key_store import DataKeyStore, Rotation
from siterig.azure_emu.vault.model.key_api import KeyApi, UnencryptedDisk, VaultKey
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError

_log = structlog.get_logger(__name__)


class KeyOperations(KeyApi):
    """The operations on the key of one vault."""

    def __init__(self, context: VaultContext, store: DataKeyStore) -> None:
        self._context = context
        self._store = store

    async def vault_keys(self) -> list[VaultKey]:
        return await self._context.database.transact(self._list)

    async def unencrypted_disks(self) -> list[UnencryptedDisk]:
        rows = await self._context.database.transact(
            lambda session: [(row.vm, row.name, row.disk_id) for row in session.scalars(select(DiskRow))]
        )
        found = []
        for vm, name, disk_id in sorted(rows):
            try:
                if not (await self._context.recovery.disk_state(disk_id=disk_id)).encrypted:
                    found.append(UnencryptedDisk(kind="managed disk", vm=vm, disk=name))
            except RigError as exc:
                if exc.code != Code.DiskNotFound:
                    raise
        disks = await self._context.azure.list_disks()
        plain = sorted((disk.vm, disk.name) for disk in disks if not disk.encrypted)
        return found + [UnencryptedDisk(kind="disk of a recovered VM", vm=vm, disk=name) for vm, name in plain]

    async def rotate_key(self) -> list[VaultKey]:
        def rotate(session: Session) -> tuple[Rotation, list[VaultKey]]:
            done = self._store.rotate(session)
            text = f"the data keys are encrypted by version {done.version} of the vault's key (number: {done.encrypted})"
            if done.left:
                text += f"; those of revoked or missing versions are not (number: {done.left})"
            self._event(session, "EncryptionKeyRotated", "Warning" if done.left else "OK", text)
            return done, self._list(session)

        done, versions = await self._context.database.transact(rotate)
        _log.info("vault_key_rotated", version=done.version, data_keys=done.encrypted, left=done.left)
        return versions

    async def revoke_key(self, *, version: int) -> list[VaultKey]:
        def revoke(session: Session) -> list[VaultKey]:
            if self._store.keys().set_state(version, "Revoked"):
                count = self._store.counts(session)[version]
                text = f"version {version} of the vault's key was revoked; its data keys cannot be used (number: {count})"
                needed = count or version == self._store.keys().current.version
                self._event(session, "EncryptionKeyRevoked", "Critical" if needed else "Warning", text)
            return self._list(session)

        versions = await self._context.database.transact(revoke)
        _log.warning("vault_key_revoked", version=version)
        await self._drop_keys("agent", self._context.site.forget_keys)
        await self._drop_keys("applier", self._context.recovery.forget_keys)
        return versions

    async def restore_key(self, *, version: int) -> list[VaultKey]:
        def restore(session: Session) -> list[VaultKey]:
            if self._store.keys().set_state(version, "Enabled"):
                text = f"version {version} of the vault's key is enabled again"
                self._event(session, "EncryptionKeyRestored", "OK", text)
            return self._list(session)

        return await self._context.database.transact(restore)

    async def _drop_keys(self, role: str, call: Callable[[], Awaitable[None]]) -> None:
        """Make a role drop its keys; a role that does not answer asks for each key again after a while."""
        try:
            await call()
        except RigError as exc:
            _log.warning("keys_not_dropped", role=role, code=exc.code, reason=exc.message)

    def _list(self, session: Session) -> list[VaultKey]:
        counts, file = self._store.counts(session), self._store.keys()
        return [
            VaultKey(
                version=each.version,
                state=each.state,
                current=each.version == file.current.version,
                created=rfc3339(each.created_ns),
                changed=rfc3339(each.changed_ns),
                data_keys=counts[each.version],
            )
            for each in file.versions
        ]

    def _event(self, session: Session, code: str, severity: events.Severity, text: str) -> None:
        now_ns = self._context.clock.wall_ns()
        events.record(session, vm=RIG, code=code, kind="ServerHealth", severity=severity, text=text, now_ns=now_ns)
