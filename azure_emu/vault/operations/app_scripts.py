"""The operations on the scripts of VMs for application-consistent points; the site's host keeps them."""

from __future__ import annotations

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.model.site_settings_api import AppScriptApi
from siterig.blockfs.contracts.app_script import AppScript


class AppScriptOperations(AppScriptApi):
    """The operations on the scripts of the VMs of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context

    async def app_script(self, *, vm: str) -> AppScript | None:
        return await self._context.site.app_script(vm=vm)

    async def set_app_script(self, *, vm: str, script: AppScript | None) -> None:
        site = self._context.site
        await self._context.retry_while_away("set script", vm, lambda: site.set_app_script(vm=vm, script=script))
        now_ns = self._context.clock.wall_ns()
        text = "has no script" if script is None else f"has the script {script.path}, limit {script.time_limit_s:g} s"
        await self._context.database.transact(
            lambda session: events.record(
                session,
                vm=vm,
                code="AppScriptChanged",
                kind="VmReplication",
                severity="OK",
                text=f"VM {vm!r} {text} for application-consistent points",
                now_ns=now_ns,
            )
        )
