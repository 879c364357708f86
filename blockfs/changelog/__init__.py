"""The change log of a disk: segments, the writer's files, recovery, replay, exchange with other formats, positions.

Imports blockfs.contracts, blockfs.core, blockfs.files, blockfs.images, blockfs.layers, blockfs.watch, cext.
"""
