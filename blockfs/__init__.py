"""The disks of one host: layers, change logs, disks, images, the FUSE front ends. Its rooms import ``cext`` only.

Imports no other room.
"""
