"""Faults of disks in one process: the injector of a mount and of a disk host.

Imports blockfs.contracts, blockfs.core, blockfs.disk, blockfs.guests, blockfs.host, blockfs.watch, scenarios.faults,
siterig.core.
"""
