"""Programs that write to a guest's disk, and know what was acknowledged.

Imports azure_emu.vault.model, blockfs.changelog, blockfs.core, blockfs.files, blockfs.guests, cext,
scenarios.contracts.
"""
