"""The promises about disks that join the replication and leave it."""

from __future__ import annotations

import pytest

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.scenarios.simulation.disk_promises import DiskPromises


def point(position: int, *lacking: str) -> RecoveryPoint:
    return RecoveryPoint.model_construct(position=position, lacking_disks=lacking)


@pytest.fixture
def promises() -> DiskPromises:
    """The promises after a disk was added, removed and asked for again, at the positions 10, 20 and 30."""
    made = DiskPromises()
    made.attached("logs")
    made.asked(["logs"], 7, joins=True)
    made.succeeded(["logs"], 10, has=True, in_newest=True)
    made.asked(["logs"], 18, joins=False)
    made.succeeded(["logs"], 20, has=False, in_newest=False)
    made.asked(["logs"], 30, joins=True)
    return made


def test_points_may_lack_a_disk_only_while_nothing_is_promised(promises: DiskPromises) -> None:
    allowed = [point(31), point(30, "logs"), point(21, "logs"), point(20), point(19, "logs"), point(18), point(10, "logs")]
    assert promises.broken_by(allowed) == []
    assert promises.broken_by([point(15, "logs")]) == ["position 15 lacks an added disk logs"]
    assert promises.broken_by([point(25)]) == ["position 25 has a removed disk logs"]


def test_a_point_never_loses_or_gains_a_disk(promises: DiskPromises) -> None:
    assert promises.broken_by([point(19, "logs")]) == []
    assert promises.broken_by([point(19)]) == ["position 19 lacks [], and lacked ['logs'] before"]


def test_the_newest_point_has_a_disk_whose_job_has_succeeded() -> None:
    made = DiskPromises()
    made.asked(["logs"], 7, joins=True)
    made.succeeded(["logs"], None, has=True, in_newest=True)
    assert made.broken_by([point(9), point(5, "logs")]) == []
    assert made.broken_by([point(12, "logs")]) == ["the newest position 12 lacks disk logs"]


def test_a_state_from_before_the_first_call_has_no_attached_disk() -> None:
    made = DiskPromises()
    made.attached("logs")
    assert not made.in_point("logs", point(50))
    made.asked(["logs"], 60, joins=True)
    assert [made.in_point("logs", each) for each in (point(60), point(61), point(61, "logs"))] == [False, True, False]
    assert made.in_point("os", point(1))


def test_nothing_is_promised_while_the_newest_position_is_not_known() -> None:
    made = DiskPromises()
    made.succeeded(["os"], 10, has=True, in_newest=False)
    made.asked(["os"], None, joins=False)
    assert made.broken_by([point(40, "os")]) == []
