"""Finds a disk that is older than the data sent of it: its folder was restored from an older copy, complete and consistent.

Each opening of a disk by its host has an id.  Before anything of an opening is sent, the newest record that the disk had
when it was opened is compared with the records at the recovery side and in the cache account.  Only then the opening is
recorded as known; from then on the recovery side may have more.

Fault contract: the record is durable before the first part of the opening is sent.  So after a kill of the agent an opening
without a record has sent nothing.  If the recovery side does not answer, an opening without a record sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import ResyncNeeded

REASON = Code.ImageChanged
_log = structlog.get_logger(__name__)


def find_unknown(disks: Sequence[DiskSync], infos: Sequence[DiskInfo]) -> list[DiskInfo]:
    """Return the disks whose present opening is not recorded as known."""
    known = {disk.disk_id: disk.opening for disk in disks}
    return [info for info in infos if info.disk_id in known and info.opening != known[info.disk_id]]


def check(
    context: AgentContext, vm: str, infos: Sequence[DiskInfo], marks: Mapping[str, Watermark], listed: Collection[PartName]
) -> None:
    """Record these openings as known.

    Raises:
        ResyncNeeded: a disk is older than the data that were sent of it.
    """
    for info in infos:
        mark = marks.get(info.disk_id)
        sent = [
            (part.generation, part.last if part.stream == "log" else 0) for part in listed if part.disk_id == info.disk_id
        ]
        if mark is not None:
            sent.append((mark.generation, mark.log_seq))
        newest = max(sent, default=(0, 0))
        has = (info.generation, info.last_seq if info.opened_seq is None else info.opened_seq)
        if newest > has:
            _log.error("disk_older_than_sent", vm=vm, disk=info.name, sent=newest, has=has)
            raise ResyncNeeded(REASON)
    for info in infos:
        context.book.update_disk(vm, info.disk_id, opening=info.opening)
