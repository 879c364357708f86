"""The FUSE file system that shows disks as files, its server and its mounts.

Imports blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.disk, blockfs.files, blockfs.guests, blockfs.host,
blockfs.images, cext.
"""
