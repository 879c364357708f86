"""Tests of siterig setup azurite with a stand-in for npm: results, interruptions, two calls at once, and errors."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.storage import azurite_setup
from siterig.azure_emu.storage.azurite_setup import InstalledAzurite, install_azurite
from siterig.blockfs.core import npm_packages
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from tests.support.command import siterig

pytestmark = pytest.mark.slow

VERSION = json.loads(npm_packages.MANIFESTS[1].read_text())["packages"]["node_modules/azurite"]["version"]
NPM = f"""#!/bin/bash
if [ "$1" = ping ]; then
    [ -z "$NO_ANSWER" ] || {{
        printf 'npm error %s\\n' 'code ECONNREFUSED' 'FetchError: connection refused' '  at x.js:1' >&2
        exit 1
    }}
    exit
fi
echo "$*" >>"$CALLS"
[ -f package.json ] && [ -f package-lock.json ] || exit 9
[ -z "$FAIL" ] || {{ printf "$FAIL" >&2; exit 1; }}
[ -z "$WARN" ] || {{ printf "$WARN" >&2; seq 100; }}
mkdir -p node_modules/.bin node_modules/azurite/dist
echo 1 >node_modules/azurite/dist/main.js
for name in main.js.map main.d.ts; do echo 1 >node_modules/azurite/dist/$name; done
echo '{{"name": "azurite", "version": "'"${{AZURITE:-{VERSION}}}"'"}}' >node_modules/azurite/package.json
ln -s ../azurite/dist/main.js node_modules/.bin/azurite-blob
[ -z "$PAUSE" ] || {{ echo "$$" >"$PAUSE"; read -r <"$PAUSE"; }}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = {"npm": NPM, "node": "#!/bin/sh\necho v20.0.0\n"}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(azurite_setup, "find_node", lambda: str(tmp_path / "bin" / "node"))
    monkeypatch.setattr(azurite_setup, "find_npm", lambda: [str(tmp_path / "bin" / "npm")])
    return tmp_path


def leftovers() -> list[str]:
    return [path.name for path in npm_packages.data_folder().glob("npm-*")]


async def installed() -> InstalledAzurite:
    return await install_azurite(lambda _text: None)


async def test_the_first_call_installs_and_the_second_finds_it(machine: Path) -> None:
    lines: list[str] = []
    umask = os.umask(0)
    try:
        done = await install_azurite(lines.append)
    finally:
        os.umask(umask)
    folder = npm_packages.setup_folder()
    assert done == InstalledAzurite(VERSION, folder, folder / "node_modules" / ".bin" / "azurite-blob", is_new=True)
    assert [path.name for path in (folder / "node_modules" / "azurite" / "dist").iterdir()] == ["main.js"]
    assert done.script.stat().st_mode & 0o777 == 0o644, "modes do not depend on the umask"
    assert leftovers() == [folder.name]
    assert len(lines) == 1 and lines[0].startswith("npm installs Azurite and the chart libraries, ")
    assert (await installed()).is_new is False
    (call,) = (machine / "calls").read_text().splitlines()
    assert call.startswith("ci --omit=dev --ignore-scripts ")


def test_the_command_prints_the_folder_and_json(machine: Path) -> None:
    done = siterig("setup", "azurite")
    assert (done.exit_code, done.stdout) == (0, f"Azurite {VERSION} is installed in {npm_packages.setup_folder()}\n")
    assert json.loads(siterig("setup", "azurite", "--json").stdout)["installed"] is False


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "npm error code ENOTFOUND\\nnpm error network request failed\\n",
            Code.AzuriteSetupFailed,
            "cannot reach its registry",
        ),
        ("npm ERR! code EINTEGRITY\\nnpm ERR! sha512-x\\n", Code.AzuriteSetupFailed, "differs from its digest"),
        ("npm error code ENOSPC\\nnpm error write\\n", Code.NotEnoughSpace, "is full; npm needs 104857600 bytes"),
        (
            "npm error code E404\\nnpm error 404 no azurite\\n",
            Code.AzuriteSetupFailed,
            "status 1; its message: 404 no azurite",
        ),
        ("Segmentation fault\\n", Code.AzuriteSetupFailed, "status 1; its message: Segmentation fault"),
    ],
)
async def test_an_error_of_npm_is_named_and_leaves_nothing(
    text: str, code: Code, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", text)
    with pytest.raises(RigError) as caught:
        await installed()
    assert caught.value.code is code
    assert message in caught.value.message
    assert leftovers() == []
    monkeypatch.delenv("FAIL")
    assert (await installed()).is_new


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        ("ENOSPC", Code.NotEnoughSpace, "is full; npm needs"),
        (
            "EIO",
            Code.AzuriteSetupFailed,
            "npm did not write all files; its message: npm warn tar TAR_ENTRY_ERROR EIO",
        ),
    ],
)
async def test_a_file_that_npm_only_warns_about_is_an_error(
    number: str, code: Code, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARN", f"npm warn tar TAR_ENTRY_ERROR {number}: write\\n")
    with pytest.raises(RigError) as caught:
        await installed()
    assert caught.value.code is code
    assert message in caught.value.message
    assert leftovers() == []


async def test_without_a_registry_npm_has_its_cache_only(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ANSWER", "1")
    monkeypatch.setenv("FAIL", "npm error code ENOTCACHED\\nnpm error not cached\\n")
    with pytest.raises(RigError) as caught:
        await installed()
    assert caught.value.message == (
        "npm cannot reach its registry (ECONNREFUSED): check the network, and npm config get registry; its message: "
        "FetchError: connection refused"
    )
    assert leftovers() == []
    monkeypatch.delenv("FAIL")
    assert (await installed()).is_new
    assert all(call.endswith(" --offline") for call in (machine / "calls").read_text().splitlines())


async def test_another_version_than_that_of_the_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURITE", "1.0.0")
    with pytest.raises(RigError, match=f"npm installed Azurite 1.0.0 in place of Azurite {VERSION}"):
        await installed()
    assert leftovers() == []


async def test_a_disk_with_too_little_space_is_refused_before_npm_runs(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azurite_setup, "SPACE_BYTES", 1 << 60)
    with pytest.raises(RigError, match=f"bytes are free at .*; npm needs {1 << 60}"):
        await installed()
    assert not (machine / "calls").exists()


async def test_an_old_node_is_refused(machine: Path) -> None:
    (machine / "bin" / "node").write_text("#!/bin/sh\necho v18.1.0\n")
    with pytest.raises(RigError, match=r"Node\.js v18\.1\.0 at .*/node is too old \(at least 20\): ") as caught:
        await installed()
    assert caught.value.code is Code.NodeMissing


async def test_two_calls_at_once_install_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = machine / "pause"
    os.mkfifo(pause)
    monkeypatch.setenv("PAUSE", str(pause))
    done: list[InstalledAzurite] = []
    waits = trio.Event()

    def report(text: str) -> None:
        if "waiting for its end" in text:
            waits.set()

    async def call() -> None:
        done.append(await install_azurite(report))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.to_thread.run_sync(pause.read_text)
            nursery.start_soon(call)
            await waits.wait()
            await trio.to_thread.run_sync(pause.write_text, "go\n")
    assert [each.is_new for each in done] == [True, False]
    assert len((machine / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_call_leaves_no_npm_and_the_next_one_installs(
    number: signal.Signals, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = machine / "pause"
    os.mkfifo(pause)
    program = (
        "import siterig.azure_emu.storage.azurite_setup as module\n"
        f"module.find_node = lambda: {str(machine / 'bin' / 'node')!r}\n"
        f"module.find_npm = lambda: [{str(machine / 'bin' / 'npm')!r}]\n"
        "from siterig.__main__ import main\n"
        "main()\n"
    )
    environment = child_environment() | {"PAUSE": str(pause)}
    child = subprocess.Popen([sys.executable, "-c", program, "setup", "azurite"], env=environment, stderr=subprocess.PIPE)
    npm = os.pidfd_open(int(pause.read_text()))
    assert leftovers() == [f"{npm_packages.setup_folder().name}.unfinished"]
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert errors.decode().splitlines()[-1] == "siterig: interrupted"
        assert leftovers() == []
    assert select.select([npm], [], [], 60)[0], "npm has ended"
    os.close(npm)
    assert siterig("setup", "azurite").exit_code == 0
    assert leftovers() == [npm_packages.setup_folder().name]
