"""Commands about keys and certificates, and the registration of hosts.

Imports azure_emu.contracts, azure_emu.user_account, azure_emu.vault.model, blockfs.core, blockfs.files,
siterig.accounts, siterig.cli, siterig.cli.commands, siterig.core, siterig.rpc, siterig.supervisor.
"""
