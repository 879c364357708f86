"""Parts: pieces of a disk's history on their way through the cache account.

Imports blockfs.changelog, blockfs.core, blockfs.files, blockfs.layers, cext.
"""
