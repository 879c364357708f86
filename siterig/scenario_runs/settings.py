"""The operations of a timeline that change what users decide: policies, limits, points, names, errors, fences, keys."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable

from siterig.azure_emu.user_account.source import ENVIRONMENT, looks_like_secret
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import DAY_S, WEEKDAYS, BandwidthLimit
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenarios.files.timeline_tables import TimelineEntry
from siterig.scenarios.files.topology import SECOND_NS


class SettingOperations:
    """Does these operations.

    Args:
        rig: the rig.
        records: gets what happens.
        finish: waits for the end of a job.
    """

    def __init__(self, rig: ScenarioRig, records: RunRecords, finish: Callable[[Job], Awaitable[Job]]) -> None:
        self._rig, self._records, self._finish = rig, records, finish

    async def set_policy(self, entry: TimelineEntry) -> None:
        """Change the values of a policy that the entry has."""
        interval_ns, app_ns = entry.interval, entry.app_consistent_every
        job = await self._rig.vault.change_policy(
            vm=entry.vm or "",
            interval_s=None if interval_ns is None else interval_ns / SECOND_NS,
            app_consistent_every_s=None if app_ns is None else app_ns / SECOND_NS,
            history_hours=entry.retention,
        )
        await self._finish(job)

    async def set_bandwidth(self, entry: TimelineEntry) -> None:
        """Limit the uploads of the site, always or in hours of each day, or end that."""
        await self._rig.vault.set_bandwidth(limit=limit_of(entry))

    async def set_app_script(self, entry: TimelineEntry) -> None:
        """Write the script of a VM to a file of this run and set it, or remove the script."""
        script = None
        if entry.script is not None:
            path = self._rig.folder / f"app-script-{entry.vm}"
            lines = ["#!/bin/sh", f"SITERIG_SCRATCH={shlex.quote(str(self._rig.folder))}", entry.script]
            path.write_text("\n".join(lines) + "\n")
            path.chmod(0o700)
            script = AppScript(path=str(path))
        await self._rig.vault.set_app_script(vm=entry.vm or "", script=script)

    async def pin(self, entry: TimelineEntry, *, pinned: bool) -> None:
        """Pin a recovery point, or unpin it."""
        await self._rig.vault.pin_point(vm=entry.vm or "", point=entry.point or "", pinned=pinned)

    async def delete_point(self, entry: TimelineEntry) -> None:
        """Delete a recovery point."""
        await self._rig.vault.delete_point(vm=entry.vm or "", point=entry.point or "")

    async def cancel_job(self, entry: TimelineEntry) -> None:
        """Cancel the job of a VM that is in progress, and wait for its end.

        Raises:
            RigError: ``JobNotFound``.
        """
        jobs = [job for job in await self._rig.vault.jobs() if job.vm == entry.vm and job.endTime is None]
        if not jobs:
            raise RigError(Code.JobNotFound, f"no job of VM {entry.vm!r} is in progress")
        job = await self._rig.vault.cancel_job(name=jobs[0].name)
        self._records.say("job", f"job {job.scenarioName} of {job.vm} {job.state}")

    async def acknowledge_error(self, entry: TimelineEntry) -> None:
        """Acknowledge a health error."""
        await self._rig.vault.resolve_health_errors(vm=entry.vm or "", code=entry.error or "")

    async def set_names(self, entry: TimelineEntry) -> None:
        """Choose the names of the VMs that failovers make."""
        job = await self._rig.vault.update_vm_properties(
            vm=entry.vm or "", recovery_vm_name=entry.recovery_name, test_vm_name=entry.test_name
        )
        await self._finish(job)

    async def rotate_account_keys(self, _entry: TimelineEntry) -> None:
        """Replace both keys of the storage account."""
        await self._rig.rotate_account_keys()

    async def set_account(self, entry: TimelineEntry) -> None:
        """Give the rig another secret of its storage account."""
        source = entry.account or ""
        is_path = not (source.startswith(ENVIRONMENT) or looks_like_secret(source))
        await self._rig.set_account(str(self._rig.folder / source) if is_path else source)

    async def fence(self, entry: TimelineEntry) -> None:
        """Make the disks of a VM at the site refuse all writes."""
        await self._rig.vault.fence_source(vm=entry.vm or "")

    async def unfence(self, entry: TimelineEntry) -> None:
        """End that."""
        await self._rig.vault.unfence_source(vm=entry.vm or "")


def limit_of(entry: TimelineEntry) -> BandwidthLimit | None:
    """Return the limit of an entry; None for no limit."""
    if entry.rate is None:
        return None
    begin_s, end_s = (_second_of_day(text) for text in (entry.hours or "00:00-24:00").split("-"))
    return BandwidthLimit(
        work_days=list(WEEKDAYS),
        work_begin_s=begin_s,
        work_end_s=min(end_s, DAY_S),
        work_bytes_s=entry.rate,
        other_bytes_s=entry.rate if entry.hours is None else None,
    )


def _second_of_day(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60
