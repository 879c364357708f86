"""The bytes of a disk of the recovery side as its files have them: encrypted with the key that the vault gives out."""

from __future__ import annotations

from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.rpc import directory
from siterig.testing.testbed import Testbed


async def cipher(testbed: Testbed, disk: str) -> DiskCipher:
    """Return the cipher of a disk of web01."""
    (disk_id,) = [found.disk_id for found in await testbed.site.list_disks(vm="web01") if found.name == disk]
    return DiskCipher((await directory.data_keys(testbed.layout).disk_key(disk_id=disk_id)).key().secret)


async def stored(testbed: Testbed, disk: str, data: bytes, offset: int) -> bytes:
    """Return the stored form of bytes of a disk of web01; they begin and end between lines of 16 bytes."""
    return (await cipher(testbed, disk)).encrypt(data, offset)
