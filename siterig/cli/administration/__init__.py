"""Commands that set and show what a rig's users decide: policies, bandwidth, acknowledged errors.

Imports azure_emu.vault.model, azure_emu.vault.points, blockfs.contracts, blockfs.core, siterig.cli,
siterig.cli.commands, siterig.core, siterig.rpc.
"""
