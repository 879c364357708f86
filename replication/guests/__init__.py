"""The guests of a host, as the agent uses them: mount points, freezing, shutting down, new file systems.

Imports blockfs.core, blockfs.guests, blockfs.images.
"""
