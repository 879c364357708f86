"""The disks of one host: layers, change logs, disks, images, the FUSE front ends. Imports ``cext`` only.

Imports no other room.
"""
