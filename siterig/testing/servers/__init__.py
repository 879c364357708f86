"""The server processes of a workbench, and their starting, sharing and end: disks, a rig, an Azurite.

Imports azure_emu.storage, blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.files, blockfs.fuse,
blockfs.guests, blockfs.host, cext, siterig.core, siterig.faults, siterig.host_faults, siterig.images, siterig.rpc,
siterig.supervisor.
"""
