"""The agent of a Hyper-V host.

Imports blockfs.contracts, blockfs.core, blockfs.files, blockfs.sides, blockfs.transfer, replication.engine,
replication.guests, replication.parts, replication.replicas.
"""
