"""Contracts of a scenario with the rig and the screen, and its results.

Imports azure_emu.vault.model, blockfs.contracts, blockfs.core, scenarios.faults.
"""
