"""Search for the position at which a check begins to fail.

Imports azure_emu.contracts, azure_emu.vault.model, blockfs.contracts, blockfs.core, blockfs.files, blockfs.guests,
siterig.cli, siterig.core.
"""
