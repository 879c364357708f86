"""Disks, file systems, an Azurite, rigs and VMs for tests: the pytest plugin, and the same without pytest.

Imports azure_emu.vault.model, blockfs.changelog, blockfs.clocks, blockfs.contracts, blockfs.core, blockfs.files,
blockfs.guests, cext, scenarios.contracts, scenarios.faults, siterig.cli, siterig.core, siterig.images, siterig.rpc,
siterig.supervisor, siterig.testing.servers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siterig.testing.clock_handle import ClockHandle
    from siterig.testing.disk_handles import DiskHandle, FileSystemHandle
    from siterig.testing.factories import azurite, clock, disk, faults, fs, rig, vm
    from siterig.testing.fault_handles import FaultsHandle
    from siterig.testing.rig_handles import RigHandle, VmHandle
    from siterig.testing.settings import TestingSettings
    from siterig.testing.workbench import Workbench

__all__ = [
    "ClockHandle",
    "DiskHandle",
    "FaultsHandle",
    "FileSystemHandle",
    "RigHandle",
    "TestingSettings",
    "VmHandle",
    "Workbench",
    "azurite",
    "clock",
    "disk",
    "faults",
    "fs",
    "rig",
    "vm",
]

_MODULES = {
    "clock_handle": ("ClockHandle",),
    "disk_handles": ("DiskHandle", "FileSystemHandle"),
    "factories": ("azurite", "clock", "disk", "faults", "fs", "rig", "vm"),
    "fault_handles": ("FaultsHandle",),
    "rig_handles": ("RigHandle", "VmHandle"),
    "settings": ("TestingSettings",),
    "workbench": ("Workbench",),
}
"""The modules of the public names; each is loaded at its first use, and only the factories need pytest."""


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
