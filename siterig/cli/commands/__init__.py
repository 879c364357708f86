"""The commands, one module a subject.

Imports azure_emu.contracts, azure_emu.scrub, azure_emu.storage, azure_emu.user_account, azure_emu.vault.inventory,
azure_emu.vault.model, azure_emu.vault.points, blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.documents,
blockfs.files, blockfs.guests, blockfs.images, scenarios.faults, siterig.accounts, siterig.cli, siterig.cli.views,
siterig.core, siterig.images, siterig.manual, siterig.rpc, siterig.supervisor.
"""
