"""Knowledge that all parts of the vault share: roles, lag, states, events, the rig's clock.

Imports azure_emu.contracts, azure_emu.vault.db, azure_emu.vault.model, blockfs.contracts, blockfs.core, blockfs.sides.
"""
