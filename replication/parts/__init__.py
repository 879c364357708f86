"""Parts in work at the site: the memory that they may use, and the spool of sync parts that are not applied yet.

Imports blockfs.contracts, blockfs.core, blockfs.files, blockfs.sides, blockfs.transfer.
"""
