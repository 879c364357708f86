"""The doctor reports each requirement of a machine, and whether it is met."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import doctor
from siterig.cli.doctor import (
    CAP_SYS_ADMIN,
    CAP_SYS_RESOURCE,
    FREE_BYTES_MIN,
    UP_BYTES_MIN,
    Prerequisite,
    ThisMachine,
    checks,
    require_fit,
)
from siterig.images import mountpoint


@dataclass
class Fake:
    """A machine that has everything, but for what a test takes away."""

    fuse: str | None = None
    loop_error: OSError | None = None
    absent: set[str] = field(default_factory=set)
    node_answer: tuple[str, str] | Exception = ("/usr/bin/node", "v20.1.0")
    azurite_answer: tuple[str, str] | Exception = ("/c/node_modules/.bin/azurite-blob", "3.37.0")
    file_systems: frozenset[str] = frozenset({"fuse", "ext4", "xfs", "proc"})
    free: int | OSError = FREE_BYTES_MIN
    caps: int = 1 << CAP_SYS_ADMIN
    release: str = "6.1.0-31-amd64"
    python_release: str = "3.11.2"
    files: int = 1024
    asked: list[Path] = field(default_factory=list)

    def fuse_error(self) -> str | None:
        return self.fuse

    def free_loop(self) -> str:
        if self.loop_error:
            raise self.loop_error
        return "/dev/loop7"

    def program(self, name: str) -> str | None:
        return None if name in self.absent else f"/sbin/{name}"

    def node(self) -> tuple[str, str]:
        if isinstance(self.node_answer, Exception):
            raise self.node_answer
        return self.node_answer

    def azurite(self) -> tuple[str, str]:
        if isinstance(self.azurite_answer, Exception):
            raise self.azurite_answer
        return self.azurite_answer

    def kernel_filesystems(self) -> frozenset[str]:
        return self.file_systems

    def free_bytes(self, folder: Path) -> int:
        self.asked.append(folder)
        if isinstance(self.free, OSError):
            raise self.free
        return self.free

    def capabilities(self) -> int:
        return self.caps

    def files_max(self) -> int:
        return self.files

    def kernel(self) -> str:
        return self.release

    def python(self) -> str:
        return self.python_release


def failures(machine: Fake, state_dir: Path) -> list[Prerequisite]:
    return [check for check in checks(state_dir, machine) if not check.ok]


def test_machine_with_everything_has_nothing_to_complain_of(tmp_path: Path) -> None:
    assert failures(Fake(), tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "name", "found", "remedy"),
    [
        (
            lambda m: setattr(m, "fuse", "Permission denied"),
            "/dev/fuse",
            "Permission denied",
            "--device /dev/fuse",
        ),
        (lambda m: m.absent.add("fusermount3"), "fusermount3", "not found", "apt-get install fuse3"),
        (lambda m: m.absent.add("xfs_repair"), "xfs_repair", "not found", "apt-get install xfsprogs"),
        (lambda m: m.absent.add("losetup"), "losetup", "not found", "apt-get install mount"),
        (lambda m: m.absent.add("fsfreeze"), "fsfreeze", "not found", "apt-get install util-linux"),
        (
            lambda m: setattr(m, "loop_error", OSError(errno.EPERM, "Operation not permitted")),
            "loop devices",
            "/dev/loop-control: Operation not permitted",
            "modprobe loop",
        ),
        (lambda m: setattr(m, "file_systems", frozenset({"fuse"})), "file systems", "the kernel lacks ext4, xfs", "modules"),
        (lambda m: setattr(m, "node_answer", RigError(Code.NodeMissing, "")), "node", "not found", "siterig[azurite]"),
        (
            lambda m: setattr(m, "node_answer", ("/usr/bin/node", "v18.19.0")),
            "node",
            "v18.19.0 at /usr/bin/node, too old (at least 20)",
            "Node.js 20 or newer",
        ),
        (
            lambda m: setattr(m, "node_answer", OSError("bad format")),
            "node",
            "does not run: bad format",
            "./rig installs one",
        ),
        (
            lambda m: setattr(m, "azurite_answer", RigError(Code.AzuriteMissing, "Azurite is not installed: no /x")),
            "azurite",
            "Azurite is not installed",
            "run siterig setup azurite",
        ),
        (
            lambda m: setattr(m, "caps", 0),
            "rights",
            "no CAP_SYS_ADMIN on this machine, which mounting and loop devices need",
            "sudo",
        ),
        (lambda m: setattr(m, "release", "5.4.0-1"), "kernel", "5.4.0-1, too old (at least 5.10)", "newer kernel"),
        (lambda m: setattr(m, "python_release", "3.10.9"), "python", "3.10.9, too old (at least 3.11)", "newer Python"),
    ],
)
def test_missing_things_are_named_with_their_remedies(
    tmp_path: Path, spoil: Callable[[Fake], None], name: str, found: str, remedy: str
) -> None:
    machine = Fake()
    spoil(machine)
    (check,) = failures(machine, tmp_path)
    assert (check.name, check.found) == (name, found)
    assert remedy in check.remedy


def test_a_machine_without_the_programs_of_the_tests_can_run_a_rig(tmp_path: Path) -> None:
    machine = Fake(absent={"fio", "initdb"})
    assert failures(machine, tmp_path) == []
    assert [(check.name, check.remedy) for check in doctor.test_checks(machine) if not check.ok] == [
        ("file systems for tests", "boot a kernel that has them, or install its modules"),
        ("fio", "apt-get install fio"),
        ("initdb", "apt-get install postgresql"),
    ]


def test_too_little_space_is_counted_where_the_state_will_be(tmp_path: Path) -> None:
    machine = Fake(free=FREE_BYTES_MIN - 1)
    (check,) = failures(machine, tmp_path / "not" / "yet" / "there")
    assert machine.asked == [tmp_path]
    assert check.found == f"5.9 GiB at {tmp_path}"
    (check,) = failures(Fake(free=(64 << 20) - 1), tmp_path)
    assert check.found == f"63 MiB at {tmp_path}"
    assert check.remedy == "a drill needs 6 GiB: free some, or name a folder on a larger file system with --dir"


def test_folder_that_cannot_be_asked_is_a_failed_check(tmp_path: Path) -> None:
    (check,) = failures(Fake(free=OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))), tmp_path)
    assert check.found == f"{tmp_path}: Transport endpoint is not connected"


def test_programs_of_an_administrator_are_found_without_their_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ThisMachine().program("ldconfig") is not None
    assert ThisMachine().program("no-such-program") is None


@pytest.mark.parametrize(
    ("path", "found"),
    [("/dev/no-such-device", "No such file or directory"), ("/dev/null", "is not the kernel's FUSE device")],
)
def test_a_fuse_device_that_is_missing_or_another_one_is_found(
    monkeypatch: pytest.MonkeyPatch, path: str, found: str
) -> None:
    monkeypatch.setattr(doctor, "FUSE_DEVICE", path)
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", path)
    assert ThisMachine().fuse_error() == found
    with pytest.raises(RigError) as caught:
        mountpoint.check_fuse()
    assert caught.value.code == "FuseMissing"


def test_capabilities_of_a_user_namespace_are_none_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_INITIAL_USER_NAMESPACE", 1)
    assert ThisMachine().capabilities() == 0


def test_a_file_is_named_once_in_the_reason_why_it_cannot_be_opened(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/dev/loop-control")
    (check,) = failures(Fake(loop_error=refused), tmp_path)
    assert check.found == "/dev/loop-control: Permission denied"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["hello", "process.exit(3)", "console.log('ready')"])
def test_a_script_that_is_no_azurite_is_found_before_it_is_started_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    script = tmp_path / "other.js"
    script.write_text(text)
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    with pytest.raises(RigError) as caught:
        ThisMachine().azurite()
    assert caught.value.code == "AzuriteMissing"
    assert caught.value.message.startswith(f"{script} is not Azurite's azurite-blob script: ")


@pytest.mark.slow
def test_an_azurite_without_its_package_is_asked_for_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "wrapper.js"
    script.write_text("console.log('3.37.0')")
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    assert ThisMachine().azurite() == (str(script), "3.37.0")


def test_version_of_azurite_is_read_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "node_modules" / "azurite"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"name": "azurite", "version": "9.8.7"}')
    script = package / "dist" / "main.js"
    script.write_text("")
    monkeypatch.setenv("SITERIG_AZURITE", str(script))
    assert ThisMachine().azurite() == (str(script), "9.8.7")


@pytest.mark.parametrize(
    ("machine", "code", "text"),
    [
        (Fake(caps=0), "NotPermitted", "rights: no CAP_SYS_ADMIN on this machine"),
        (Fake(fuse="No such file"), "FuseMissing", "/dev/fuse: No such file (remedy: modprobe fuse"),
        (Fake(absent={"mount"}), "ToolMissing", "mount: not found (remedy: apt-get install mount)"),
        (Fake(absent={"fusermount3"}), "ToolMissing", "fusermount3: not found (remedy: apt-get install fuse3)"),
        (Fake(node_answer=RigError(Code.NodeMissing, "none")), "NodeMissing", "node: not found (remedy: install Node.js"),
        (Fake(node_answer=("/usr/bin/node", "v18.0.0")), "NodeMissing", "too old (at least 20)"),
        (Fake(azurite_answer=RigError(Code.AzuriteMissing, "not there: x")), "AzuriteMissing", "not there (remedy:"),
        (Fake(loop_error=OSError(errno.ENOENT, "No such file")), "MachineUnfit", "loop devices: /dev/loop-control"),
        (Fake(free=UP_BYTES_MIN - 1), "MachineUnfit", "(remedy: a rig needs 64 MiB: free some"),
        (Fake(files=63), "TooFewFiles", "open files: 63 (remedy: raise the hard limit of open files to 64"),
        (Fake(release="4.19.0"), "MachineUnfit", "kernel: 4.19.0, too old"),
    ],
)
def test_a_rig_is_refused_on_a_machine_that_lacks_something_with_the_remedy(
    tmp_path: Path, machine: Fake, code: str, text: str
) -> None:
    with pytest.raises(RigError) as caught:
        require_fit(tmp_path / "rig", machine)
    assert caught.value.code == code
    assert caught.value.message.startswith("this machine cannot run a rig: ")
    assert text in caught.value.message
    assert caught.value.code.exit_status == ExitStatus.ENVIRONMENT
    assert not (tmp_path / "rig").exists()


def test_all_lacks_are_named_at_once_and_a_rig_needs_less_space_than_a_drill(tmp_path: Path) -> None:
    with pytest.raises(RigError) as caught:
        require_fit(tmp_path, Fake(caps=0, absent={"losetup", "mkfs.xfs"}))
    assert [name for name in ("rights: ", "losetup: ", "mkfs.xfs: ") if name not in caught.value.message] == []
    require_fit(tmp_path, Fake(free=UP_BYTES_MIN))


def test_a_rig_that_exists_starts_on_a_full_disk_so_that_space_can_be_freed(tmp_path: Path) -> None:
    require_fit(tmp_path, Fake(free=0), is_new=False)


def test_a_low_limit_of_open_files_is_no_lack_where_it_may_be_raised(tmp_path: Path) -> None:
    require_fit(tmp_path, Fake(files=63, caps=1 << CAP_SYS_ADMIN | 1 << CAP_SYS_RESOURCE))
