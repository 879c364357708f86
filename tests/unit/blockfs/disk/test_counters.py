"""A disk's counters: how requests are counted, how percentiles are estimated, and that reading them is no request."""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.contracts.counters import LATENCY_BUCKETS, DiskCounters, percentile_us
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext._core import ffi, lib
from tests.support.disks.fuse_calls import NOBODY, inode_of
from tests.support.io_faults import WRITE, failing

SIZE = 1 << 20
CUT: TagKind = "CrashConsistent"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def counters(host: DiskHost) -> DiskCounters:
    return await host.counters(vm="web01", disk="os")


# --- percentiles --------------------------------------------------------------------------------------------------


def histogram(times_us: list[float]) -> list[int]:
    """Return the counts of the engine: bucket b has the requests from 2**(b-1) to less than 2**b microseconds."""
    counts = [0] * LATENCY_BUCKETS
    for time_us in times_us:
        counts[min(int(time_us).bit_length(), LATENCY_BUCKETS - 1)] += 1
    return counts


@pytest.mark.parametrize("seed", range(20))
def test_a_percentile_is_within_a_factor_of_two_of_the_true_one(seed: int) -> None:
    print(f"replay with seed {seed}")
    rng = random.Random(seed)
    times = sorted(rng.lognormvariate(rng.uniform(0, 10), rng.uniform(0.1, 3)) for _ in range(rng.randrange(1, 500)))
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        true = times[math.ceil(share * len(times)) - 1]
        found = percentile_us(histogram(times), share, times[-1])
        assert found is not None
        if true >= 2 ** (LATENCY_BUCKETS - 2):
            assert 2 ** (LATENCY_BUCKETS - 2) <= found <= times[-1]
        else:
            assert max(true, 1) / 2 <= max(found, 1) <= max(true, 1) * 2


def test_a_percentile_needs_a_request_and_is_at_most_the_longest() -> None:
    assert percentile_us([0] * LATENCY_BUCKETS, 0.5, 0) is None
    assert percentile_us(histogram([1000.0]), 0.99, 1000.0) == 1000.0
    assert percentile_us(histogram([0.5]), 0.5, 0.5) == 0.5
    assert percentile_us(histogram([3e7, 3e7]), 0.99, 3e7) == 3e7


# --- requests and the log ----------------------------------------------------------------------------------------------


async def test_requests_are_counted_by_kind_with_their_bytes_errors_and_times(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    files = DiskFileSystem(host)
    handle = (await files.open(await inode_of(files, "web01", "os.img"), os.O_RDWR, NOBODY)).fh
    for number in range(10):
        await files.write(handle, number * 4096, b"x" * 4096)
    await files.read(handle, 0, 8192)
    await files.read(handle, SIZE - 512, 4096)
    await files.fsync(handle, datasync=False)
    with failing(WRITE, ".hrl", errno.ENOSPC), pytest.raises(pyfuse3.FUSEError):
        await files.write(handle, 0, b"y" * 512)
    assert lib.sr_handle_fallocate(handle, 0x3, 0, 65536) == 0
    assert lib.sr_handle_seek(handle, 0, os.SEEK_HOLE) == 0
    found = await counters(host)

    reported = {kind: (r.ops, r.bytes, r.errors) for kind, r in found.requests.items()}
    assert reported == {
        "read": (2, 8192 + 512, 0),
        "write": (11, 40960, 1),
        "flush": (1, 0, 0),
        "discard": (1, 65536, 0),
        "seek": (1, 0, 0),
    }
    for request in found.requests.values():
        assert sum(request.latency_log2_us) == request.ops
        assert None not in (request.p50_us, request.p99_us, request.longest_us)
        assert 0 < (request.p50_us or 0) <= (request.p99_us or 0) <= (request.longest_us or 0)
    assert found.log.written_records == 12, "these are ten writes, a flush and a discard"
    assert found.log.written_bytes == 12 * 64 + 40960
    assert found.log.kept_bytes == found.log.written_bytes + 128
    assert (found.log.kept_bytes_max, found.dirty_bytes, found.snapshot_bytes_max) == (SIZE // 2, 0, None)
    assert (found.vm, found.name, found.size_bytes, found.tracked, found.generation) == ("web01", "os", SIZE, True, 1)


async def test_switches_and_tags_are_counted_with_the_longest_stall(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    before = (await counters(host)).log
    assert (before.segments_switched, before.longest_switch_us, before.longest_append_us) == (0, 0, 0)
    for _ in range(3):
        await host.cut(vm="web01", kind=CUT, name="n")
    after = (await counters(host)).log
    assert after.segments_switched == 3
    assert 0 < after.longest_switch_us <= after.longest_append_us, "a cut writes a tag and switches segments"


async def test_an_untracked_disk_has_counters_too(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    handle = (await files.open(await inode_of(files, "web01", "os.img"), os.O_RDWR, NOBODY)).fh
    await files.write(handle, 0, b"x")
    found = await counters(host)
    assert (found.tracked, found.requests["write"].ops, found.log.written_records, found.log.kept_bytes) == (False, 1, 0, 0)
    assert found.requests["read"].p50_us is None
    assert found.requests["read"].longest_us is None


async def test_reading_logs_snapshots_or_counters_is_no_disk_request(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    await host.begin_snapshot(vm="web01")
    files = DiskFileSystem(host)
    for name in ("os.000001.hrl", "os.snapshot", "os.stats"):
        handle = (await files.open(await inode_of(files, "web01", name), os.O_RDONLY, NOBODY)).fh
        assert await files.read(handle, 0, 100)
        await files.release(handle)
    found = await counters(host)
    assert found.requests["read"].ops == 0
    assert found.snapshot_bytes_max == SIZE // 2
    handle = (await files.open(await inode_of(files, "web01", "os.vhd"), os.O_RDONLY, NOBODY)).fh
    await files.read(handle, 0, 100)
    assert (await counters(host)).requests["read"].ops == 1


async def test_counters_of_an_unknown_disk_are_refused_with_the_known_ones(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    with pytest.raises(RigError, match="has no disk 'data'; it has: os"):
        await host.counters(vm="web01", disk="data")


# --- NAME.stats ---------------------------------------------------------------------------------------------------


async def test_the_stats_file_has_the_counters_of_the_moment_of_opening(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    disk = (await files.open(await inode_of(files, "web01", "os.img"), os.O_RDWR, NOBODY)).fh
    await files.write(disk, 0, b"x")
    info = await files.open(await inode_of(files, "web01", "os.stats"), os.O_RDONLY, NOBODY)
    assert info.direct_io, "a cached page would show an older text"
    await files.write(disk, 0, b"x")
    text = b""
    while piece := await files.read(info.fh, len(text), 100):
        text += piece
    assert text.endswith(b"}\n")
    assert DiskCounters.model_validate_json(text).requests["write"].ops == 1
    assert (await counters(host)).requests["write"].ops == 2


async def test_an_open_stats_file_does_not_keep_the_disk_in_use(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    inode = await inode_of(files, "web01", "os.stats")
    handle = (await files.open(inode, os.O_RDONLY, NOBODY)).fh
    assert host.disk("web01", "os").handles == 0
    await host.remove_vm(vm="web01")
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.read(handle, 0, 100)
    assert failed.value.errno == errno.EIO
    await files.release(handle)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.open(inode, os.O_RDONLY, NOBODY)
    assert failed.value.errno == errno.ENOENT


async def test_a_host_without_free_descriptors_refuses_the_stats_file(
    host: DiskHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    inode = await inode_of(files, "web01", "os.stats")

    def none_left(*_args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.open(inode, os.O_RDONLY, NOBODY)
    assert failed.value.errno == errno.EMFILE


# --- growing, and limits ------------------------------------------------------------------------------------------


async def test_a_resize_by_command_reaches_log_state_and_the_kernel(host: DiskHost, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[int, bool]] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, *, attr_only: reported.append((inode, attr_only)))
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    files = DiskFileSystem(host)
    image = await inode_of(files, "web01", "os.img")
    info = await host.resize_disk(vm="web01", disk="os", size_bytes=2 * SIZE)
    assert (info.size_bytes, info.tracked, info.log_bytes_max) == (2 * SIZE, True, SIZE)
    assert reported == [(image, True)], "the kernel does not know the VHD form"
    assert (await files.getattr(image, NOBODY)).st_size == 2 * SIZE
    assert host.disk("web01", "os").state.size_bytes == 2 * SIZE
    await host.resize_disk(vm="web01", disk="os", size_bytes=2 * SIZE)
    with pytest.raises(RigError, match=rf"disk web01/os: new size is {SIZE} bytes; .* at least {2 * SIZE} \(a disk is"):
        await host.resize_disk(vm="web01", disk="os", size_bytes=SIZE)
    with pytest.raises(RigError, match=r"and at most 64 TiB") as refused:
        await host.resize_disk(vm="web01", disk="os", size_bytes=DISK_BYTES_MAX + 512)
    assert refused.value.code == "InvalidDiskSize"


async def test_a_resize_succeeds_if_the_kernel_no_longer_knows_the_file(
    host: DiskHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(inode: int, *, attr_only: bool) -> None:
        raise OSError(errno.ENOENT, "fuse_lowlevel_notify_inval_inode returned: No such file or directory")

    monkeypatch.setattr(pyfuse3, "invalidate_inode", unknown)
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    await inode_of(files, "web01", "os.img")
    assert (await host.resize_disk(vm="web01", disk="os", size_bytes=2 * SIZE)).size_bytes == 2 * SIZE


async def test_a_full_host_refuses_to_grow_a_disk_which_stays_unchanged(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    with failing(WRITE, ".hrl", errno.ENOSPC), pytest.raises(RigError) as refused:
        await host.resize_disk(vm="web01", disk="os", size_bytes=2 * SIZE)
    assert refused.value.code == "DiskFull"
    (info,) = await host.list_disks(vm="web01")
    assert (info.size_bytes, info.tracked) == (SIZE, True)


async def test_a_grown_disk_may_have_a_longer_log(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    disk = host.disk("web01", "os")
    await host.resize_disk(vm="web01", disk="os", size_bytes=4 * SIZE)
    for at in range(0, 3 * SIZE // 2, 65536):
        disk.write(at, b"x" * 65536)
    assert disk.tracking.active, "the log is longer than half of the old size"
    for at in range(0, SIZE, 65536):
        disk.write(at, b"y" * 65536)
    assert not disk.tracking.active
    assert disk.state.needs_resync == "LogOverflow"


async def test_a_disk_has_the_limits_of_its_host(tmp_path: Path) -> None:
    host = DiskHost(tmp_path / "d", tmp_path / "m", policy=LogPolicy(kept_share_max=0.25), snapshot_share_max=0.125)
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    await host.begin_snapshot(vm="web01")
    (info,) = await host.list_disks(vm="web01")
    assert (info.log_bytes_max, info.snapshot_bytes_max) == (SIZE // 4, SIZE // 8)
    disk = host.disk("web01", "os")
    for at in range(0, SIZE // 4, 65536):
        disk.write(at, b"x" * 65536)
    assert (await host.list_disks(vm="web01"))[0].needs_resync == "LogOverflow"
    host.abandon()


def test_the_engine_and_the_model_have_the_same_counters() -> None:
    assert ffi.sizeof("struct sr_counters") == 8 * (5 * (3 + LATENCY_BUCKETS + 1) + 5), (
        "the engine has a counter that the model lacks"
    )
