"""The processes of a rig, one module a role.

Imports azure_emu.applier, azure_emu.authority, azure_emu.contracts, azure_emu.disks, azure_emu.storage,
azure_emu.vault, azure_emu.vault.model, blockfs.clocks, blockfs.contracts, blockfs.core, blockfs.disk, blockfs.files,
blockfs.fuse, blockfs.guests, blockfs.host, blockfs.sides, blockfs.transfer, blockfs.trust, blockfs.watch,
replication.engine, replication.hyperv, siterig.accounts, siterig.core, siterig.director, siterig.director.links,
siterig.faults, siterig.host_faults, siterig.rpc, siterig.supervisor.
"""
