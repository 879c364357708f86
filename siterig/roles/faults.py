"""The director of the rig's faults; the first command that needs it has it started."""

from __future__ import annotations

from functools import partial

import trio

from siterig.blockfs.core.clock import Clock
from siterig.core.fault_contract import DIRECTOR, FaultControl, RoleRules
from siterig.core.hosts import note_reboot
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import RoleStarts
from siterig.director.clock_faults import ClockInjector
from siterig.director.links.wiring import link_injectors
from siterig.director.rig import DirectedRig
from siterig.roles.entry import Health, run_role
from siterig.rpc import directory, server


async def run(layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    rig = DirectedRig(
        run_file=layout.fault_run,
        injection_file=layout.injections,
        atlas_file=layout.fault_atlas,
        supervisor=directory.supervisor(layout, DIRECTOR),
        moments=directory.moments(layout, DIRECTOR),
        items=directory.vault(layout, DIRECTOR),
        hosts={"site": directory.site(layout, DIRECTOR), "azure": directory.azure(layout, DIRECTOR)},
        injectors={
            "site": directory.site_faults(layout, DIRECTOR),
            "agent": directory.agent_faults(layout, DIRECTOR),
            "applier": directory.applier_faults(layout, DIRECTOR),
            "azure": directory.azure_faults(layout, DIRECTOR),
        },
        note_reboot=partial(note_reboot, layout),
        others=lambda schedule: [*link_injectors(layout, schedule), ClockInjector(layout.clock, layout.clock_faults)],
        clock=clock,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.run)
        faces = {
            "FaultControl": (FaultControl, rig.director),
            "RoleStarts": (RoleStarts, rig.processes),
            "RoleRules": (RoleRules, rig),
        }
        await nursery.start(server.serve, faces, layout.socket(DIRECTOR))
        task_status.started()


def main() -> None:
    """Run the role in this process."""
    run_role("faults", run)


if __name__ == "__main__":
    main()
