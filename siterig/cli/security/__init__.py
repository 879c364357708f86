"""Commands about keys and certificates, and the registration of hosts.

Imports azure_emu.contracts, azure_emu.vault.model, blockfs.core, blockfs.files, siterig.cli, siterig.cli.commands,
siterig.rpc.
"""
