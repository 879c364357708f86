"""Faults of change logs and managed disks: rules for the host's files, decisions for each call, and damage at once.

Imports azure_emu.disks, blockfs.changelog, blockfs.core, blockfs.files, cext, scenarios.faults, siterig.core,
siterig.faults.
"""
