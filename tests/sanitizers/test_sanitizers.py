"""The C core under stress, built with sanitizers, has no data race, bad access, undefined behaviour or leak.

The logs must also have the contents of the disks.

``SITERIG_STRESS_S``: seconds for each program and sanitizer (a few).  ``SITERIG_SEED``: the seed of the rounds' choices; it
does not control the scheduling of threads, so a finding may take several attempts to repeat.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from siterig.cext.build_cext import SOURCE_ROOT, SOURCES

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
SECONDS = {"thread": "3", "address": "2"}
"""Bad accesses and leaks need less luck than data races."""
SEED = os.environ.get("SITERIG_SEED", str(random.SystemRandom().randrange(1 << 32)))
PROGRAMS = {
    "stress": ("stress.c", "victim.c", "check.c", "common.c"),
    "server_stress": ("server_stress.c", "common.c"),
    "view_stress": ("view_stress.c", "common.c"),
    "fault_stress": ("fault_stress.c", "common.c"),
    "host_files_stress": ("host_files_stress.c", "common.c"),
    "segment_stress": ("segment_stress.c", "common.c"),
}
SHORT = ("host_files_stress", "segment_stress")
"""Programs that have met everything after a second."""
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}
FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCE_ROOT}", f"-I{HERE}")
ENVIRONMENT = {
    **os.environ,
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    # The FUSE server's threads are cancelled, after which the sanitizer's alternate signal stack would be wrong.
    "ASAN_OPTIONS": "use_sigaltstack=0:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def gcc(*arguments: str, folder: Path) -> None:
    done = subprocess.run(["gcc", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def runner() -> list[str]:
    """Return a command prefix that turns off address randomization if gcc 12's thread sanitizer cannot handle it."""
    bits = int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    return ["setarch", "--addr-no-randomize"] if bits > 28 else []


@pytest.fixture(scope="module", params=SANITIZERS)
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Return the flags of a sanitizer, and a folder of its name with the core's objects that were built with them."""
    flags = [*FLAGS, *SANITIZERS[request.param]]
    folder = tmp_path_factory.mktemp(request.param, numbered=False)
    gcc(*flags, "-Wno-unused-parameter", "-c", *map(str, SOURCES), folder=folder)
    return flags, folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_stress_under_sanitizers_gives_no_report(name: str, core: tuple[list[str], Path], tmp_path: Path) -> None:
    flags, folder = core
    program = folder / name
    sources = [str(HERE / source) for source in PROGRAMS[name]]
    objects = [str(path) for path in folder.glob("*.o")]
    gcc(*flags, *sources, *objects, "-lcrypto", "-o", str(program), folder=tmp_path)
    print(f"replay with SITERIG_SEED={SEED}")
    seconds = os.environ.get("SITERIG_STRESS_S", "1" if name in SHORT else SECONDS[folder.name])
    command = [*runner(), str(program), str(tmp_path), seconds, SEED]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "round 0: " in done.stdout
