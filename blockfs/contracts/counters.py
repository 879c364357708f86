"""Counters of a disk since it was opened: the models, and their reading from the disk in C.

Reading stops no request: the counters are single words that requests add to, so two of them may differ by one request.
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
    """Requests of one kind on the disk and its VHD form.

    Attributes:
        ops: number of requests, including those that failed.
        bytes: bytes of the requests that succeeded.
        latency_log2_us: element *b* counts the requests that took less than 2**b microseconds and at least half of that;
            the last element counts all longer ones.
        p50_us: median latency, estimated from ``latency_log2_us`` to within a factor of two; None without requests.
        p99_us: 99th percentile, estimated likewise; None without requests.
        longest_us: the longest latency, exact; None without requests.
    """

    ops: int
    bytes: int
    errors: int
    p50_us: float | None
    p99_us: float | None
    longest_us: float | None
    latency_log2_us: list[int]


class LogCounters(WireModel):
    """Counters of the change log.

    Attributes:
        longest_switch_us: the longest time that writers waited for a new segment to begin.
        longest_append_us: the longest time that writers waited for a TAG record.
        kept_bytes: bytes of the log that are kept.
        kept_bytes_max: limit of ``kept_bytes``; None: no limit.
    """

    written_bytes: int
    written_records: int
    segments_switched: int
    longest_switch_us: float
    longest_append_us: float
    kept_bytes: int
    kept_bytes_max: int | None


class DiskCounters(WireModel):
    """Counters and present state of a disk.

    Attributes:
        since_ns: when the disk was opened and the counters began, in nanoseconds since 1970.
        requests: counters by kind of request; ``discard`` includes zeroing.
        dirty_bytes: bytes that changed since the log was abandoned, in whole chunks.
        snapshot_bytes: bytes of the old chunks that the snapshot keeps.
        snapshot_bytes_max: limit of ``snapshot_bytes``; None: there is no snapshot.
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


def as_text(counters: DiskCounters) -> str:
    """Return the counters as indented JSON, with each histogram on one line."""
    indented = counters.model_dump_json(indent=2)
    return re.sub(r"\[[\s\d,]+\]", lambda row: json.dumps(json.loads(row[0])), indented) + "\n"


def percentile_us(counts: Sequence[int], share: float, longest_us: float) -> float | None:
    """Estimate a percentile of the latency.

    The estimate assumes that requests are spread evenly within a bucket, and that none took longer than ``longest_us``.

    Args:
        counts: the histogram, as ``latency_log2_us``.
        share: the share of requests that did not take longer, from 0 to 1.
        longest_us: the longest latency in microseconds.

    Returns:
        The latency in microseconds; None if there was no request.
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
    """Return the counters of a disk in C (``struct sr_counters``)."""
    counters = ffi.new("struct sr_counters *")
    lib.sr_disk_counters(disk, counters)
    return counters


def requests_done(disk: Any) -> int:
    """Return the number of requests of all kinds on a disk in C since it was opened."""
    return sum(read(disk).ops)


def requests(counters: Any) -> dict[RequestKind, RequestCounters]:
    """Return the request counters by kind, from ``struct sr_counters``."""
    return {kind: _requests(counters, op) for kind, op in REQUEST_KINDS.items()}


def _requests(counters: Any, op: int) -> RequestCounters:
    counts, longest_us = list(counters.latency[op]), counters.longest_ns[op] / 1000
    return RequestCounters(
        ops=counters.ops[op],
        bytes=counters.bytes[op],
        errors=counters.errors[op],
        p50_us=percentile_us(counts, 0.5, longest_us),
        p99_us=percentile_us(counts, 0.99, longest_us),
        longest_us=longest_us if sum(counts) else None,
        latency_log2_us=counts,
    )


def log(counters: Any, *, kept_bytes: int, kept_bytes_max: int | None) -> LogCounters:
    """Return the counters of the change log, from ``struct sr_counters``; the caller knows the bytes that are kept."""
    return LogCounters(
        written_bytes=counters.log_bytes,
        written_records=counters.log_records,
        segments_switched=counters.segments_switched,
        longest_switch_us=counters.longest_switch_ns / 1000,
        longest_append_us=counters.longest_append_ns / 1000,
        kept_bytes=kept_bytes,
        kept_bytes_max=kept_bytes_max,
    )
