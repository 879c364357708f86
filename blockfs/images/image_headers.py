"""Headers of disk containers: the disk's size and sector size, and the reasons why an image cannot be read alone.

qemu-img reads the contents.  But it reports one text for most causes, opens other files that an image names, and reads
missing data of a truncated image as zeros.  So the causes that a user can act on are found here first, from the descriptor
that qemu-img then gets.

Sources: QEMU ``docs/interop/qcow2.txt``; Microsoft *VHD* 1.0 and *[MS-VHDX]*; VMware *Virtual Disk Format* 5.0.

Fault contract: nothing is written.  A header may have any bytes; they result in facts or in a ``RigError``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX, SECTOR_BYTES
from siterig.blockfs.images import vhd, vhdx
from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.images.image_kind import OVERRIDE

_NAME_BYTES_MAX = 1023
_DESCRIPTOR_BYTES_MAX = 1 << 20
_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")
_QCOW2_DATA_FILE, _QCOW2_END = 0x44415441, 0
_QCOW2_CORRUPT, _QCOW2_EXTERNAL = 1 << 1, 1 << 2
_QCOW2_KNOWN = 0b11111  # dirty, corrupt, external data file, compression type, extended L2 entries
_QCOW1 = struct.Struct(">4sIQIIQBBHIQ")
_CIPHERS = {1: "AES", 2: "LUKS"}
_VMDK_SPARSE = struct.Struct("<4sIIQQQQ")
_VDI = struct.Struct("<IIII")
_VDI_AT, _VDI_DIFFERENCING = 64, 4


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """Sizes in a header; ``size_bytes`` is None if qemu-img determines it."""

    size_bytes: int | None = None
    sector_bytes: int = SECTOR_BYTES


def read_header(file: ImageBytes, format_: ImageFormat) -> HeaderFacts:
    """Return the facts of a container; ``ImageUnusable`` has the cause: encrypted, marked corrupt, needs another file."""
    return _READERS[format_](file) if format_ in _READERS else HeaderFacts()


def not_exposed(file: ImageBytes, format_: ImageFormat) -> RigError:
    """Return the error for a container where only a raw disk can be used, with the remedy or what prevents a conversion."""
    remedy = f"qemu-img convert -f {format_} -O raw makes a raw image of it"
    try:
        read_header(file, format_)
    except RigError as error:
        remedy = f"it {error.message.removeprefix(f'{file.path}: ')}"
    return file.error(
        f"is a {format_} image; raw images and fixed VHDs are supported: {remedy}; if it is a raw image, {OVERRIDE}"
    )


# --- qcow2 and qcow -----------------------------------------------------------------------------------------------


def _qcow2(file: ImageBytes) -> HeaderFacts:
    magic, version, backing_at, backing_bytes, _, size, crypt, *_ = _QCOW2.unpack(file.read(0, _QCOW2.size))
    if magic != b"QFI\xfb":
        raise file.error("is no qcow2 image: its first bytes are not QFI and 0xfb")
    if version == 1:
        raise file.error("has format version 1: give --format qcow")
    if version not in (2, 3):
        raise file.error(f"has qcow2 version {version}; 2 and 3 are supported")
    _refuse_encrypted(file, "qcow2", crypt)
    if version == 3:
        features, _, _, _, header_bytes = _QCOW2_V3.unpack(file.read(_QCOW2.size, _QCOW2_V3.size))
        if features & _QCOW2_CORRUPT:
            raise file.error(
                "is marked corrupt by the program that wrote it: qemu-img check -r all repairs what can be repaired"
            )
        if features & _QCOW2_EXTERNAL:
            raise file.error_needs(f"its data file {_qcow2_data_file(file, header_bytes)}")
        if unknown := features & ~_QCOW2_KNOWN:
            raise file.error(f"has incompatible features that are not supported (bits {unknown:#x})")
    if backing_at:
        raise file.error_needs(_name(file, backing_at, backing_bytes))
    return HeaderFacts(size)


def _qcow2_data_file(file: ImageBytes, at: int) -> str:
    while at < 1 << 16:
        kind, length = struct.unpack(">II", file.read(at, 8))
        if kind == _QCOW2_DATA_FILE:
            return _name(file, at + 8, length)
        if kind == _QCOW2_END:
            break
        at += 8 + (length + 7) // 8 * 8
    return "(no name is in it)"


def _qcow(file: ImageBytes) -> HeaderFacts:
    fields = _QCOW1.unpack(file.read(0, _QCOW1.size))
    magic, version, backing_at, backing_bytes, _, size, cluster_bits, table_bits, _, crypt, top_at = fields
    if magic != b"QFI\xfb" or version != 1:
        raise file.error("is no qcow image of version 1")
    _refuse_encrypted(file, "qcow", crypt)
    if backing_at:
        raise file.error_needs(_name(file, backing_at, backing_bytes))
    if not (9 <= cluster_bits <= 16 and 6 <= table_bits <= 13 and 0 < size <= DISK_BYTES_MAX):
        raise file.error(f"is damaged: clusters of 2^{cluster_bits} bytes, tables of 2^{table_bits}, a disk of {size} bytes")
    _qcow_is_whole(file, top_at, ((size - 1) >> (cluster_bits + table_bits)) + 1, cluster_bits, table_bits)
    return HeaderFacts(size)


def _qcow_is_whole(file: ImageBytes, top_at: int, tables: int, cluster_bits: int, table_bits: int) -> None:
    """Check that all clusters are in the file: qemu-img check does not know this format, and convert reads zeros."""
    for (at,) in struct.iter_unpack(">Q", file.read(top_at, tables * 8)):
        if not at:
            continue
        for (entry,) in struct.iter_unpack(">Q", file.read(at, 8 << table_bits)):
            if entry >> 63:  # compressed: so many bytes of it
                end = (entry & ((1 << (63 - cluster_bits)) - 1)) + (entry >> (63 - cluster_bits) & ((1 << cluster_bits) - 1))
            else:
                end = entry + (1 << cluster_bits) if entry else 0
            if end > file.size_bytes:
                raise file.error(f"is truncated: a cluster ends at byte {end}; the file has {file.size_bytes}")


def _refuse_encrypted(file: ImageBytes, name: str, method: int) -> None:
    if method:
        cipher = _CIPHERS.get(method, f"method {method}")
        raise file.error(
            f"is an encrypted {name} image ({cipher}): qemu-img convert --object secret,... --image-opts makes one that is "
            "not encrypted, with its key"
        )


def _name(file: ImageBytes, at: int, length: int) -> str:
    if not 0 < length <= _NAME_BYTES_MAX:
        raise file.error(f"names another file in {length} bytes; 1 to {_NAME_BYTES_MAX} are allowed")
    return file.read(at, length).decode(errors="replace")


# --- VHD and VHDX -------------------------------------------------------------------------------------------------


def _vhd(file: ImageBytes) -> HeaderFacts:
    """Check a dynamic VHD, which has a footer at its beginning; the size depends on the program that made it."""
    vhd.check_dynamic(file)
    return HeaderFacts()


def _vhdx(file: ImageBytes) -> HeaderFacts:
    found = vhdx.read_header(file)
    if found.parent is not None:
        raise file.error(f"is a differencing VHDX and needs another file, its parent {found.parent}")
    if found.has_log:
        raise file.error("was not closed cleanly: its log must be replayed first: qemu-img check -r all replays it")
    return HeaderFacts(found.size_bytes, found.sector_bytes)


# --- VMDK ---------------------------------------------------------------------------------------------------------

_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"]*)")?', re.MULTILINE)
_KEY = re.compile(r'^\s*([\w.]+)\s*=\s*"?([^"\r\n]*)"?', re.MULTILINE)
_ALONE = ("monolithicsparse", "streamoptimized")


def _vmdk(file: ImageBytes) -> HeaderFacts:
    magic = file.read(0, 4)
    if magic == b"KDMV":
        _, version, _, _, _, at, sectors = _VMDK_SPARSE.unpack(file.read(0, _VMDK_SPARSE.size))
        if version not in (1, 2, 3):
            raise file.error(f"has VMDK version {version}; 1 to 3 are supported")
        _vmdk_descriptor(file, file.read(at * SECTOR_BYTES, min(sectors * SECTOR_BYTES, _DESCRIPTOR_BYTES_MAX)))
    elif magic == b"COWD":
        raise file.error(
            "is an extent of an ESX snapshot (COWD) and needs other files: qemu-img convert makes one image of all"
        )
    elif magic == b"# Di":
        _vmdk_descriptor(file, file.read(0, min(file.size_bytes, _DESCRIPTOR_BYTES_MAX)), text=True)
    else:
        raise file.error("is no VMDK: it begins neither with KDMV nor with a descriptor")
    return HeaderFacts()


def _vmdk_descriptor(file: ImageBytes, raw: bytes, *, text: bool = False) -> None:
    said = raw.partition(b"\0")[0].decode(errors="replace")
    keys = {key.lower(): value for key, value in _KEY.findall(said)}
    kind = keys.get("createtype", "")
    if not text and not kind:
        raise file.error(
            "is one extent of a split VMDK and needs the other files: qemu-img convert -O qcow2, given the descriptor (the "
            "small .vmdk beside this file), makes one image of all"
        )
    if keys.get("parentcid", "ffffffff").lower() != "ffffffff":
        raise file.error_needs(f"its parent {keys.get('parentfilenamehint') or '(no name is in it)'}")
    if text or kind.lower() not in _ALONE:
        extents = [name for _, name in _EXTENT.findall(said) if name]
        raise file.error_needs(", ".join(extents[:4]) or f"the device of a VMDK of type {kind or 'unknown'}")


# --- VDI ----------------------------------------------------------------------------------------------------------


def _vdi(file: ImageBytes) -> HeaderFacts:
    _, version, _, kind = _VDI.unpack(file.read(_VDI_AT, _VDI.size))
    if version != 0x0001_0001:
        raise file.error(f"has VDI version {version >> 16}.{version & 0xFFFF}; 1.1 is supported")
    if kind == _VDI_DIFFERENCING:
        raise file.error(
            "is a differencing VDI and needs another file, its parent: VBoxManage clonemedium makes one image of both"
        )
    return HeaderFacts()


_READERS: dict[ImageFormat, Callable[[ImageBytes], HeaderFacts]] = {
    "qcow2": _qcow2,
    "qcow": _qcow,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "vmdk": _vmdk,
    "vdi": _vdi,
}
