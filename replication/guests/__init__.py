"""The guests of a host, as the agent uses them: mount points, freezing, shutting down, new file systems.

Imports blockfs.contracts, blockfs.core, blockfs.files, blockfs.guests, blockfs.images.
"""
