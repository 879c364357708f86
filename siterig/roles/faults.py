"""The director of the rig's faults; the first command that needs it has it started."""

from __future__ import annotations

from functools import partial

import trio

from siterig.core.fault_contract import FaultControl
from siterig.core.hosts import note_reboot
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import RoleStarts
from siterig.director.rig import DirectedRig
from siterig.roles.entry import Health, run_role
from siterig.rpc import directory, server


async def run(layout: Layout, *, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    rig = DirectedRig(
        run_file=layout.fault_run,
        injection_file=layout.injections,
        supervisor=directory.supervisor(layout),
        moments=directory.moments(layout),
        hosts={"site": directory.site(layout), "azure": directory.azure(layout)},
        injectors={"site": directory.site_faults(layout), "azure": directory.azure_faults(layout)},
        note_reboot=partial(note_reboot, layout),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.run)
        faces = {"FaultControl": (FaultControl, rig.director), "RoleStarts": (RoleStarts, rig.processes)}
        await nursery.start(server.serve, faces, layout.socket("faults"))
        task_status.started()


def main() -> None:
    """Run the role in this process."""
    run_role("faults", run)


if __name__ == "__main__":
    main()
