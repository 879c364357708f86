"""Images without a rig: mount and export.

Imports blockfs.core, blockfs.files, blockfs.fuse, blockfs.guests, blockfs.host, blockfs.images, siterig.core.
"""
