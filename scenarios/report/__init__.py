"""The report of a drill as one HTML page.

Imports azure_emu.vault.model, blockfs.core, blockfs.files, scenarios.contracts.
"""
