"""The replication of one VM, whatever its fabric: copies, cycles, parts, retries, failback.

Imports blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.files, blockfs.layers, blockfs.sides,
blockfs.transfer, cext, replication.comparison, replication.guests, replication.parts.
"""
