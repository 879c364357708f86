"""The hosts of a rig: the roles of each, and reboots of them that are emulated.

Fault contract: the id of an emulated reboot is durable before a role of the host starts again, so all of its later
processes belong to the same boot.  Only a file of this rig changes; the kernel's boot id stays.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import write_atomically
from siterig.core.paths import Layout

ROLES_OF_HOST: Mapping[str, tuple[str, ...]] = {"site": ("site", "agent"), "azure": ("azure",)}
"""The roles of each host, in the order of a kill and of a start: the disk host first, in the middle of its load."""


def note_reboot(layout: Layout, host: str) -> None:
    """Let all later processes of a host belong to a new boot."""
    write_atomically(layout.reboot(host), f"{uuid.uuid4()}\n".encode())


def join_boot(layout: Layout, role: str) -> None:
    """Let this process belong to the boot of its host; call it before it reads or writes any state.

    Raises:
        RigError: ``StateUnreadable`` if the file of the last emulated reboot is damaged.
    """
    host = next((host for host, roles in ROLES_OF_HOST.items() if role in roles), None)
    path = None if host is None else layout.reboot(host)
    if path is None or not path.exists():
        return
    try:
        boot.emulate_reboot(uuid.UUID(path.read_text().strip()))
    except ValueError:
        raise RigError(
            Code.StateUnreadable, f"{path}: must hold a UUID; remove the file to use the kernel's boot id"
        ) from None
