"""The replication of each VM: the task that goes through its phases, its cycles, and changes of its disks.

Imports blockfs.contracts, blockfs.core, blockfs.sides, blockfs.transfer, replication.comparison, replication.engine,
replication.parts.
"""
