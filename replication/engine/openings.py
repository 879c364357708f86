"""Notices a disk that is older than what was sent of it: its folder was restored from an older copy, whole and consistent.

Each opening of a disk by its host has an id.  Before anything of an opening is sent, the newest record that the disk had
when it was opened is compared with what the recovery side has, and with what is on its way there.  Only then is the opening
noted as known; from then on the recovery side may have more.

Fault contract: the note is durable before the first part of the opening is sent.  So after a kill of the agent an opening
that is not known has sent nothing.  Where the recovery side cannot be asked, an opening that is not known sends nothing.
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
    """Disks that were opened since something of them was sent."""
    known = {disk.disk_id: disk.opening for disk in disks}
    return [info for info in infos if info.disk_id in known and info.opening != known[info.disk_id]]


def check(
    context: AgentContext, vm: str, infos: Sequence[DiskInfo], marks: Mapping[str, Watermark], listed: Collection[PartName]
) -> None:
    """Note these openings; ``ResyncNeeded`` if a disk is older than what was sent of it."""
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
