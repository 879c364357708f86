"""Views of a rig and of its VMs that are drawn again when something has changed.

Imports azure_emu.vault.model, blockfs.core, siterig.cli, siterig.core, siterig.rpc.
"""
