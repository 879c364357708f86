"""Disk images of users: recognition, import, headers, fixed VHD and VHDX, qemu-img in confinement.

Imports blockfs.core, blockfs.files, blockfs.guests, cext.
"""
