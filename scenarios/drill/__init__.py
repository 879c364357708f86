"""The steps of the drill.

Imports azure_emu.contracts, azure_emu.vault.model, blockfs.core, blockfs.files, scenarios.checks, scenarios.contracts,
scenarios.workloads.
"""
