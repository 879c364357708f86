"""What a disk has done since it was opened: the models, and how they are read from the engine in C.

Reading stops nothing: the counters are single words that requests add to, so two of them may be a request apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from siterig.blockfs.core.wire_model import WireModel
from siterig.cext._core import ffi, lib

RequestKind = Literal["read", "write", "flush", "discard", "seek"]
REQUEST_KINDS: dict[RequestKind, int] = {
    "read": lib.SR_COUNT_READ,
    "write": lib.SR_COUNT_WRITE,
    "flush": lib.SR_COUNT_FLUSH,
    "discard": lib.SR_COUNT_DISCARD,
    "seek": lib.SR_COUNT_SEEK,
}
LATENCY_BUCKETS: int = lib.SR_LATENCY_BUCKETS


class RequestCounters(WireModel):
    """Requests of one kind on the disk and its VHD form, failed ones included; ``bytes`` are those of the others.

    ``latency_log2_us``: element *b* counts requests that took less than 2**b microseconds and not less than half of
    that; the last one, all that took longer than the one before it.  The percentiles are estimated from it, to within a
    factor of two; ``longest_us`` is exact.  All three are None as long as there was no request.
    """

    ops: int
    bytes: int
    errors: int
    p50_us: float | None
    p99_us: float | None
    longest_us: float | None
    latency_log2_us: list[int]


class LogCounters(WireModel):
    """The change log: what was written to it, and what is kept of it, ``kept_bytes_max`` at most (None: no limit).

    ``longest_switch_us``: for which beginning a segment, ``longest_append_us``: for which a TAG, has held writers up.
    """

    written_bytes: int
    written_records: int
    segments_switched: int
    longest_switch_us: float
    longest_append_us: float
    kept_bytes: int
    kept_bytes_max: int | None


class DiskCounters(WireModel):
    """A disk's counters since ``since_ns`` (Unix time), when it was opened; the rest of it is of this moment.

    ``discard`` counts zeroing too.  ``dirty_bytes``: changed since the log was given up, in whole chunks.
    ``snapshot_bytes``: what old chunks take of ``snapshot_bytes_max`` (None: there is no snapshot).
    """

    vm: str
    name: str
    since_ns: int
    requests: dict[RequestKind, RequestCounters]
    log: LogCounters
    size_bytes: int
    tracked: bool
    generation: int
    needs_resync: str | None
    dirty_bytes: int
    snapshot_bytes: int
    snapshot_bytes_max: int | None


def as_text(found: DiskCounters) -> str:
    """JSON that can be read by people too: a histogram is one line."""
    indented = found.model_dump_json(indent=2)
    return re.sub(r"\[[\s\d,]+\]", lambda row: json.dumps(json.loads(row[0])), indented) + "\n"


def percentile_us(counts: Sequence[int], share: float, longest_us: float) -> float | None:
    """The time that ``share`` of the requests did not exceed; ``counts`` as ``latency_log2_us``.  None: no requests.

    Within a bucket the requests are taken to be spread evenly; none took longer than ``longest_us``.
    """
    rank = math.ceil(share * sum(counts))
    for bucket, count in enumerate(counts):
        if 0 < rank <= count:
            lower, upper = (2.0 ** (bucket - 1) if bucket else 0.0), 2.0**bucket
            if bucket == len(counts) - 1:
                upper = max(longest_us, lower)
            return min(lower + (upper - lower) * rank / count, longest_us)
        rank -= count
    return None


def read(disk: Any) -> Any:
    """The counters of a disk in C (``struct sr_counters``)."""
    found = ffi.new("struct sr_counters *")
    lib.sr_disk_counters(disk, found)
    return found


def requests_done(disk: Any) -> int:
    """Of a disk in C: of all kinds, since it was opened."""
    return sum(read(disk).ops)


def requests(found: Any) -> dict[RequestKind, RequestCounters]:
    """Of every kind of request."""
    return {kind: _requests(found, op) for kind, op in REQUEST_KINDS.items()}


def _requests(found: Any, op: int) -> RequestCounters:
    counts, longest_us = list(found.latency[op]), found.longest_ns[op] / 1000
    return RequestCounters(
        ops=found.ops[op],
        bytes=found.bytes[op],
        errors=found.errors[op],
        p50_us=percentile_us(counts, 0.5, longest_us),
        p99_us=percentile_us(counts, 0.99, longest_us),
        longest_us=longest_us if sum(counts) else None,
        latency_log2_us=counts,
    )


def log(found: Any, *, kept_bytes: int, kept_bytes_max: int | None) -> LogCounters:
    """Of the change log; what is kept the log itself knows."""
    return LogCounters(
        written_bytes=found.log_bytes,
        written_records=found.log_records,
        segments_switched=found.segments_switched,
        longest_switch_us=found.longest_switch_ns / 1000,
        longest_append_us=found.longest_append_ns / 1000,
        kept_bytes=kept_bytes,
        kept_bytes_max=kept_bytes_max,
    )
