"""The agent of a Hyper-V host.

Imports blockfs.contracts, blockfs.core, blockfs.files, blockfs.transfer, replication.contracts, replication.engine.
"""
