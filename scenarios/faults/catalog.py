"""The layers of the fault language, and the faults of each: which keys and operations go together.

The schema (:mod:`siterig.scenarios.faults.rules`) refuses everything that is not here, and docs/reference/fault-rules.md is
drawn from here.  An injector implements the faults of its layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

LayerName = Literal["disk", "log", "store", "link", "blob", "process", "clock", "machine"]
LAYER_NAMES: tuple[LayerName, ...] = get_args(LayerName)
IMMEDIATE = "-"
"""The operation of a rule that acts when its window opens, and not on an operation of its layer."""

BODY_SENT = ("PutBlob", "PutBlock", "PutPage", "AppendBlock")
"""The operations of the blob service that send a body."""
_BODY_RECEIVED = ("GetBlob", "ListBlobs", "GetBlockList", "GetPageRanges")
_BLOB_OPERATIONS = (
    *BODY_SENT,
    "PutBlockList",
    *_BODY_RECEIVED,
    "GetBlobProperties",
    "SetBlobMetadata",
    "DeleteBlob",
    "LeaseBlob",
    "CopyBlob",
    "CreateContainer",
    "GetContainerProperties",
    "DeleteContainer",
    "ListContainers",
)


@dataclass(frozen=True, slots=True)
class FaultLayer:
    """A layer that faults are injected into.

    Args:
        about: one line for the reference page.
        places: the keys of ``where`` beside ``layer``.
        operations: the operations of the layer; a layer without any has immediate faults only.
        target: the keys that the second word of the command line form sets, joined by a slash.
    """

    about: str
    places: tuple[str, ...]
    operations: tuple[str, ...]
    target: tuple[str, ...]


LAYERS: Mapping[LayerName, FaultLayer] = {
    "disk": FaultLayer(
        "A virtual disk, as its guest sees it; the faults are in the C layers.",
        ("vm", "disk", "op", "start", "length", "file"),
        ("read", "write", "zero", "discard", "flush"),
        ("vm", "disk"),
    ),
    "log": FaultLayer(
        "The change log of a disk, its dirty bitmap and its snapshot: files of the site's host.",
        ("vm", "disk", "part", "op", "start", "length"),
        ("open", "read", "append", "sync", "rotate"),
        ("vm", "disk"),
    ),
    "store": FaultLayer(
        "A managed disk on the recovery side: its base, journal, checkpoints and metadata.",
        ("vm", "disk", "part", "op", "start", "length"),
        ("open", "read", "write", "sync", "checkpoint", "compact"),
        ("vm", "disk"),
    ),
    "link": FaultLayer(
        "A connection between two processes: an RPC link, or the TCP link to the storage account.",
        ("link", "role", "stream", "op"),
        ("connect", "send", "close"),
        ("link",),
    ),
    "blob": FaultLayer(
        "The blob service, through a proxy before Azurite or a real account; operations are those of its REST interface.",
        ("blob", "role", "op"),
        _BLOB_OPERATIONS,
        ("blob",),
    ),
    "process": FaultLayer("A role of the rig, as a process of the host.", ("role", "op"), ("start",), ("role",)),
    "clock": FaultLayer("The clock of one role or of all.", ("role",), (), ("role",)),
    "machine": FaultLayer("A host of the rig with everything on it, or a VM.", ("host", "vm", "disk"), (), ("host",)),
}

READS = frozenset({"read", "GetBlob"})
"""The operations that change nothing that is stored."""
ALL_PLACES = tuple(dict.fromkeys(key for layer in LAYERS.values() for key in layer.places))
WHEN_KEYS = ("after", "until", "for", "occurrence", "every", "probability", "times", "while_file", "timing")
EXPECT_KEYS = ("fired", "recoverable")
PARTS: Mapping[str, tuple[str, ...]] = {
    "log": ("segment", "dirty-bitmap", "snapshot"),
    "store": ("base", "journal", "checkpoint", "metadata"),
}
"""The values of ``part`` by layer."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One key of ``what``.

    Args:
        about: what happens on each layer that has the fault, for the reference page.
        operations: the operations that can meet it on each layer; all operations of the layer if a layer is not listed.
        immediate: the layers on which it may stand without an operation; it acts when the rule's window opens.
        needs: the key qualifies one of these, and does not stand alone.
        joins: other faults that may stand in the same rule.
        destroys: bytes are changed or lost, so a rule may be limited to recoverable damage.
        late: it can take effect after the operation, too (``timing = "after"``).
    """

    about: Mapping[LayerName, str]
    operations: Mapping[LayerName, tuple[str, ...]] = field(default_factory=dict)
    immediate: tuple[LayerName, ...] = ()
    needs: tuple[str, ...] = ()
    joins: tuple[str, ...] = ()
    destroys: bool = False
    late: bool = False

    def operations_on(self, layer: LayerName) -> tuple[str, ...]:
        """Return the operations of a layer that can meet this fault."""
        return self.operations.get(layer, LAYERS[layer].operations)


def _on(text: str, *layers: LayerName) -> dict[LayerName, str]:
    return dict.fromkeys(layers, text)


EFFECTS: Mapping[str, FaultKind] = {
    "error": FaultKind(
        _on("the operation fails with this errno", "disk", "log", "store")
        | _on("the request is answered with this HTTP status, storage error code and Retry-After", "blob"),
        late=True,
    ),
    "delay": FaultKind(
        _on("the operation takes this much longer", "disk", "blob")
        | _on("data arrives this much later", "link")
        | _on("slow start: the role is started this much later", "process"),
        joins=("*",),
    ),
    "jitter": FaultKind(_on("the spread of the delay", "disk", "link", "blob", "process"), needs=("delay",)),
    "distribution": FaultKind(_on("the form of the jitter", "disk", "link", "blob", "process"), needs=("delay",)),
    "rate": FaultKind(
        _on("at most so many bytes a second", "disk", "link", "blob"),
        operations={"disk": ("read", "write"), "link": ("send",), "blob": (*BODY_SENT, *_BODY_RECEIVED)},
        joins=("iops",),
    ),
    "iops": FaultKind(_on("at most so many operations a second", "disk"), joins=("rate",)),
    "truncate": FaultKind(
        _on("short read or write: only so many bytes are done, and reported", "disk")
        | _on(
            "the body of the answer or upload ends after so many bytes, and the connection too; shorter ones do not count",
            "blob",
        ),
        operations={"disk": ("read", "write"), "blob": (*BODY_SENT, *_BODY_RECEIVED)},
    ),
    "tear": FaultKind(
        _on("torn write: only parts of the data reach the disk", "disk")
        | _on("torn tail: the last record is partly written", "log")
        | _on("torn tail: the last frame of the journal is partly written", "store")
        | _on("with power: writes in flight are torn", "machine"),
        operations={"disk": ("write",), "log": ("append",), "store": ("write",)},
        joins=("lose", "power", "kill"),
        destroys=True,
    ),
    "misdirect": FaultKind(
        _on("a write, or a read, reaches an offset that is shifted by so much", "disk"),
        operations={"disk": ("read", "write")},
        destroys=True,
    ),
    "stale": FaultKind(
        _on("a read returns the bytes that were there when the rule began", "disk"), operations={"disk": ("read",)}
    ),
    "flip": FaultKind(
        _on("bits of the data are inverted: for the reader alone, or in the stored bytes", "disk", "log", "store")
        | _on("bits of the body are inverted: those that are stored, or those of the answer", "blob"),
        operations={
            "disk": ("read", "write"),
            "log": ("read", "append"),
            "store": ("read", "write"),
            "blob": (*BODY_SENT, "GetBlob"),
        },
        immediate=("log", "store"),
        destroys=True,
    ),
    "bad_sectors": FaultKind(
        _on("reads of these sectors fail with EIO until a write heals them", "disk"),
        operations={"disk": ("read",)},
        destroys=True,
    ),
    "lie": FaultKind(
        _on("a flush is acknowledged and does nothing", "disk"), operations={"disk": ("flush",)}, destroys=True
    ),
    "full_after": FaultKind(
        _on("disk full: ENOSPC after so many new bytes; bytes that have a place can be overwritten", "disk", "log", "store"),
        operations={"disk": ("write", "zero"), "log": ("append", "rotate"), "store": ("write", "checkpoint", "compact")},
    ),
    "pause": FaultKind(
        _on("freeze: operations wait until the rule is removed; all matched disks at one position", "disk")
        | _on("SIGSTOP, and SIGCONT when the rule is removed or its window closes", "process"),
        immediate=("disk", "process"),
        late=True,
    ),
    "lose": FaultKind(
        _on("power loss: everything that was not flushed is lost; all matched disks at one position", "disk"),
        immediate=("disk",),
        joins=("tear",),
        destroys=True,
        late=True,
    ),
    "crash": FaultKind(
        _on("after the power loss every operation fails with EIO until the rule is removed; true by default", "disk"),
        needs=("lose",),
    ),
    "survive": FaultKind(
        _on("writes since the last flush that the power loss leaves, although they were not flushed", "disk")
        | _on("with power: `random`: a random part of the writes that were not flushed is left", "machine"),
        needs=("lose", "power"),
    ),
    "lost": FaultKind(
        _on("the file is lost", "log", "store") | _on("acknowledged, but not stored", "blob"),
        operations={
            "log": ("open", "rotate"),
            "store": ("open", "checkpoint"),
            "blob": ("PutBlob", "PutBlock", "PutPage", "PutBlockList", "SetBlobMetadata", "DeleteBlob"),
        },
        immediate=("log", "store"),
        destroys=True,
    ),
    "broken_chain": FaultKind(
        _on("the chain of segments is broken: a later one does not follow the one before", "log")
        | _on("the chain of frames is broken: a frame does not follow the one before", "store"),
        operations={"log": ("rotate",), "store": ("write",)},
        immediate=("log", "store"),
        destroys=True,
    ),
    "connection": FaultKind(
        _on("the connection is reset, refused, silent, slow to close, or open on one side only", "link", "blob"),
        late=True,
    ),
    "close_after": FaultKind(_on("the time until the connection is reset or closed", "link", "blob"), needs=("connection",)),
    "cut_after": FaultKind(
        _on("the connection is closed after so many bytes; the rule fires then", "link"),
        operations={"link": ("connect", "send")},
    ),
    "account": FaultKind(
        _on("the key is rotated, the containers are deleted, or the account is", "blob"),
        immediate=("blob",),
        destroys=True,
    ),
    "kill": FaultKind(
        _on("the process gets this signal", "process")
        | _on(
            "the process that does the operation gets this signal, before or after it; with tear within it",
            "log",
            "store",
        ),
        immediate=("process",),
        late=True,
    ),
    "files_max": FaultKind(
        _on("out of descriptors: RLIMIT_NOFILE", "process"), immediate=("process",), joins=("memory_max",)
    ),
    "memory_max": FaultKind(_on("memory limit: RLIMIT_AS", "process"), immediate=("process",), joins=("files_max",)),
    "jump": FaultKind(_on("wall time jumps by so much; monotonic time does not", "clock"), immediate=("clock",)),
    "skew": FaultKind(
        _on("wall time of the role differs by so much from that of the others", "clock"),
        immediate=("clock",),
        joins=("drift",),
    ),
    "drift": FaultKind(_on("the clock is faster or slower by so much", "clock"), immediate=("clock",), joins=("skew",)),
    "power": FaultKind(
        _on("power loss of the host, a reboot with a new boot id, or a host that does not come back", "machine"),
        immediate=("machine",),
        joins=("tear",),
        destroys=True,
    ),
    "delete": FaultKind(_on("the VM is deleted", "machine"), immediate=("machine",), destroys=True),
    "resize": FaultKind(_on("the disk grows to this size", "machine"), immediate=("machine",)),
    "mark": FaultKind(
        _on("nothing but the mark: rules with after = mark:NAME follow it", *LAYER_NAMES),
        immediate=LAYER_NAMES,
        joins=("*",),
        late=True,
    ),
}


def effects_of(layer: LayerName) -> tuple[str, ...]:
    """Return the keys of ``what`` on a layer."""
    return tuple(key for key, kind in EFFECTS.items() if layer in kind.about)
