"""The guest's side of this host: loop devices, mounts, frozen file systems.

Imports blockfs.core.
"""
