"""Faults of disks in one process: the injector of a mount and of a disk host.

Imports blockfs.contracts, blockfs.core, blockfs.disk, scenarios.faults, siterig.core.
"""
