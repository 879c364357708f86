"""The disk host: all disks of a folder, mounted points, and a single image without a rig.

Imports blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.disk, blockfs.files, blockfs.images, blockfs.layers,
blockfs.watch.
"""
