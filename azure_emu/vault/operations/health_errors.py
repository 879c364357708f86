"""The operations on the health of protected items."""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.model.api import HealthApi
from siterig.azure_emu.vault.model.resources import HealthError
from siterig.azure_emu.vault.monitoring import acknowledged, health, item_facts
from siterig.azure_emu.vault.monitoring.source_watch import SourceWatch
from siterig.blockfs.core.errors import Code, RigError


class HealthOperations(HealthApi):
    """The operations on the health of the items of one vault; ``sources`` knows the disks of VMs that failed over."""

    def __init__(self, context: VaultContext, sources: SourceWatch) -> None:
        self._context = context
        self._sources = sources

    async def resolve_health_errors(self, *, vm: str, code: str) -> list[HealthError]:
        def resolve(session: Session) -> list[HealthError]:
            item = find_item(session, vm)
            now_ns = self._context.clock.wall_ns()
            facts = item_facts.read(session, item)
            known = [*health.reasons(facts), *self._sources.health_errors(vm)]
            meant = [error for error in known if code in (error.errorCode, error.errorId)]
            if not meant:
                codes = ", ".join(dict.fromkeys(error.errorCode for error in known)) or "none"
                raise RigError(
                    Code.HealthErrorNotFound, f"VM {vm!r} has no health error {code!r}; health errors now: {codes}"
                )
            news, _ = acknowledged.split(meant, facts.acknowledged)
            acknowledged.add(session, vm, news, now_ns)
            for error in news:
                text = f"VM {vm!r}: a user acknowledged {error.errorCode}: {error.summaryMessage}"
                events.record(
                    session, vm=vm, code="HealthErrorAcknowledged", kind="VmHealth", severity="OK", text=text, now_ns=now_ns
                )
            return meant

        return await self._context.database.transact(resolve)
