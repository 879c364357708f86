"""Images without a rig: mount and export.

Imports blockfs.core, blockfs.files, blockfs.fuse, blockfs.guests, blockfs.host, blockfs.images, scenarios.faults,
siterig.core, siterig.director, siterig.faults, siterig.host_faults, siterig.rpc.
"""
