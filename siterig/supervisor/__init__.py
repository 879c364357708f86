"""The supervisor: starts, watches and ends the roles of a rig.

Imports azure_emu.authority, azure_emu.contracts, azure_emu.storage, azure_emu.vault.context, azure_emu.vault.model,
blockfs.clocks, blockfs.contracts, blockfs.core, blockfs.files, blockfs.guests, blockfs.trust, cext, siterig.accounts,
siterig.cli, siterig.core, siterig.rpc.
"""
