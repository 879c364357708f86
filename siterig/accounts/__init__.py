"""The storage account of a rig, Azurite's or a user's: its clients, and the check before a rig uses it.

Imports azure_emu.storage, azure_emu.user_account, blockfs.core, blockfs.transfer, siterig.core, siterig.rpc.
"""
