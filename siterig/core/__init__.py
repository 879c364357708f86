"""Shared parts of the program: folders of a rig, lock, limits, values of options, start of processes.

Imports azure_emu.contracts, azure_emu.vault.model, azure_emu.vault.points, blockfs.changelog, blockfs.contracts,
blockfs.core, blockfs.documents, blockfs.files, cext, scenarios.faults.
"""
