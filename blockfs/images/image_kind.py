"""Detects the type of an image file by its contents: raw disks, containers of disks, archives, encrypted disks."""

from __future__ import annotations

import os
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.images import vhd
from siterig.blockfs.images.image_formats import ImageFormat

HEAD_BYTES = 512
WANTED = "an image is a file that holds the bytes of a disk, or a block device"
"""End of the message about a file of another type."""
OVERRIDE = "--format raw takes every byte as the disk's"
"""End of a message about contents that a raw disk could have as well."""

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "vhd": (".vhd", ".vpc"),
    "vhdx": (".vhdx", ".avhdx"),
    "qcow2": (".qcow2", ".qcow"),
    "qcow": (".qcow",),
    "vmdk": (".vmdk",),
    "vdi": (".vdi",),
    "qed": (".qed",),
    "parallels": (".hdd", ".hds", ".parallels"),
}
_CONTAINERS: tuple[tuple[int, bytes, ImageFormat], ...] = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
_LUKS_DECRYPT = "qemu-img convert --object secret,id=key,file=KEYFILE --image-opts driver=luks,key-secret=key,file.filename="


@dataclass(frozen=True, slots=True)
class _Refused:
    """Contents that contain a disk but are none; ``command`` makes an image of the file ``{}``."""

    at: int
    magic: bytes
    title: str
    command: str


_REFUSED = (
    _Refused(0, b"\x1f\x8b\x08", "a gzip archive", "gzip -dc {} >disk.img"),
    _Refused(0, b"\xfd7zXZ\0", "an xz archive", "xz -dc {} >disk.img"),
    _Refused(0, b"\x28\xb5\x2f\xfd", "a zstd archive", "zstd -dc {} >disk.img"),
    _Refused(0, b"\x04\x22\x4d\x18", "an lz4 archive", "lz4 -dc {} >disk.img"),
    _Refused(0, b"LZIP\x01", "an lzip archive", "lzip -dc {} >disk.img"),
    _Refused(0, b"\x89LZO\0\r\n\x1a\n", "an lzop archive", "lzop -dc {} >disk.img"),
    _Refused(0, b"\x1f\x9d\x90", "a compress archive (.Z)", "uncompress -c {} >disk.img"),
    _Refused(0, b"PK\x03\x04", "a zip archive", "unzip {}"),
    _Refused(0, b"PK\x05\x06", "an empty zip archive", "unzip {}"),
    _Refused(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {}"),
    _Refused(0, b"Rar!\x1a\x07", "a RAR archive", "unrar x {}"),
    _Refused(0, b"MSWIM\0\0\0", "a WIM archive", "wimapply {} FOLDER"),
    _Refused(0, b"MSCF\0\0\0\0", "a cabinet archive", "cabextract {}"),
    _Refused(0, b"070701", "a cpio archive", "cpio -idF {}"),
    _Refused(0, b"!<arch>\n", "an ar archive", "ar x {}"),
    _Refused(0, b"LUKS\xba\xbe", "an encrypted disk (LUKS)", _LUKS_DECRYPT + "{} -O raw disk.img"),
    _Refused(0, b"Salted__", "an encrypted file (openssl enc)", "openssl enc -d -in {} -out disk.img"),
    _Refused(0, b"age-encryption.org/", "an encrypted file (age)", "age -d -o disk.img {}"),
    _Refused(0, b"-----BEGIN PGP MESSAGE", "an encrypted file (PGP)", "gpg -d -o disk.img {}"),
    _Refused(0, b"EVF\x09\x0d\x0a\xff\0", "an EWF (E01) image", "ewfexport -f raw {}"),
)
_DMG = b"koly\0\0\0\x04"
_TAR_CHECKSUM_AT, _TAR_CHECKSUM_BYTES = 148, 8
_LZMA = struct.Struct("<BIQ")
_BZIP2, _BZIP2_BLOCKS = b"BZh", (b"1AY&SY", b"\x17rE8P\x90")


@dataclass(frozen=True, slots=True)
class Contents:
    """The first and the last bytes of an image file, and its size."""

    head: bytes
    tail: bytes
    size_bytes: int

    @classmethod
    def of(cls, fd: int, size_bytes: int) -> Contents:
        """Read the contents through a descriptor."""
        head = os.pread(fd, HEAD_BYTES, 0)
        return cls(head, os.pread(fd, vhd.FOOTER_BYTES, max(size_bytes - vhd.FOOTER_BYTES, 0)), size_bytes)

    def container(self) -> ImageFormat | None:
        """Return the format that the first bytes identify; None: the file may be a raw disk or a VHD."""
        return next((name for at, magic, name in _CONTAINERS if self.head[at:].startswith(magic)), None)

    def looks_like_vhd(self) -> bool:
        """Return True if a VHD footer is at the beginning or at the end."""
        return vhd.COOKIE in (self.head[:8], self.tail[:8], self.tail[1:9])


def guess(path: Path, contents: Contents, *, is_device: bool = False) -> ImageFormat:
    """Return the format of an image by its contents and, for a fixed VHD, by its name.

    A block device is always raw, because a guest writes its contents.

    Raises:
        RigError: ``ImageUnusable`` for an archive or an encrypted disk, with the command that unpacks or decrypts it, and
            for contents of two possible formats; ``VhdCorrupt``.
    """
    if is_device:
        return "raw"
    if (container := contents.container()) is not None:
        return container
    _refuse(path, contents)
    named = path.suffix.lower() == ".vhd"
    if named and not contents.looks_like_vhd():
        raise RigError(
            Code.VhdCorrupt,
            f"{path}: is named as a VHD, but its last {vhd.FOOTER_BYTES} bytes are no VHD footer; if it is a raw image, "
            "give --format raw",
        )
    if contents.head.startswith(vhd.COOKIE):
        return "vhd"
    if contents.looks_like_vhd() and not named:
        # Not detected as a VHD: a guest can write such bytes to the end of its raw disk.
        raise RigError(
            Code.ImageUnusable,
            f"{path}: ends with a VHD footer, but is not named as a VHD: give --format vhd, or --format raw if every byte "
            "is the disk's",
        )
    return "vhd" if named else "raw"


def _refuse(path: Path, contents: Contents) -> None:
    head = contents.head
    for refused in _REFUSED:
        if head[refused.at :].startswith(refused.magic):
            raise _not_a_disk(path, refused.title, refused.command)
    if _is_tar(head):
        if path.suffix.lower() == ".ova" or head[:100].rstrip(b"\0").lower().endswith(b".ovf"):
            raise _not_a_disk(path, "an OVA archive (tar)", "tar -xf {}, then import the .vmdk files")
        raise _not_a_disk(path, "a tar archive", "tar -xf {}")
    if _is_lzma(head):
        raise _not_a_disk(path, "an lzma archive", "xz --format=lzma -dc {} >disk.img")
    if head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS:
        raise _not_a_disk(path, "a bzip2 archive", "bzip2 -dc {} >disk.img")
    if contents.tail.startswith(_DMG):
        raise _not_a_disk(path, "a compressed Apple disk image (DMG)", "dmg2img {} disk.img")


def _is_tar(head: bytes) -> bool:
    """Return True if the checksum of a tar header is right: the oldest form (v7) has no magic bytes."""
    end = _TAR_CHECKSUM_AT + _TAR_CHECKSUM_BYTES
    try:
        wanted = int(head[_TAR_CHECKSUM_AT:end].rstrip(b"\0 "), 8)
    except ValueError:
        return False
    return len(head) == HEAD_BYTES and wanted == sum(head) - sum(head[_TAR_CHECKSUM_AT:end]) + _TAR_CHECKSUM_BYTES * ord(" ")


def _is_lzma(head: bytes) -> bool:
    """Return True if the three header fields are those of lzma; xz checks the same, as there are no magic bytes."""
    if len(head) < _LZMA.size:
        return False
    properties: int
    dictionary_bytes: int
    size_bytes: int
    properties, dictionary_bytes, size_bytes = _LZMA.unpack_from(head)
    return (
        properties == 0x5D and dictionary_bytes.bit_count() == 1 and (size_bytes >> 38 == 0 or size_bytes == (1 << 64) - 1)
    )


def _not_a_disk(path: Path, title: str, command: str) -> RigError:
    shown = command.format(shlex.quote(str(path)))
    verb = "decrypts" if "encrypted" in title else "unpacks"
    return RigError(Code.ImageUnusable, f"{path}: is {title}, not a disk: {shown} {verb} it; {OVERRIDE}")


def remark(path: Path, format_: ImageFormat, contents: Contents, disk_bytes: int) -> str | None:
    """Return a remark for the user if contents and name do not agree on the format; None if they do."""
    container = contents.container()
    if format_ == "raw":
        if container is None:
            return None
        return f"{path}: is a block device, taken for raw although it begins like a {container} image; --format overrides"
    if path.suffix.lower() in _SUFFIXES[format_]:
        return None
    return (
        f"{path}: taken for {format_} by its contents: a disk of {disk_bytes} bytes in a file of {contents.size_bytes}; "
        f"if it is a raw image, {OVERRIDE}"
    )
