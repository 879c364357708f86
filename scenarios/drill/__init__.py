"""The steps of the drill.

Imports azure_emu.vault.model, blockfs.contracts, blockfs.core, blockfs.files, scenarios.checks, scenarios.contracts,
scenarios.workloads.
"""
