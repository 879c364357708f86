"""Calls between the roles of a rig: contract, client, server.

Imports azure_emu.authority, azure_emu.contracts, azure_emu.vault.context, azure_emu.vault.model, blockfs.contracts,
blockfs.core, blockfs.files, blockfs.sides, blockfs.transfer, blockfs.trust, siterig.core.
"""
