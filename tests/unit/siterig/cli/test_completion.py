"""Completion: what a rig knows is offered, quickly and without a word when the rig does not answer; in three shells."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from siterig.cli import completion
from siterig.cli.app import SUBJECTS
from siterig.core.paths import Layout, create

POINT = "50d200cf-c986-46ad-9522-e6e01ca90fc8"
ANSWERS: dict[str, Any] = {
    "/VaultApi/list_vms": [
        {"vm": "web01", "side": "site", "state": "Protected", "disks": [{"name": "os"}, {"name": "data"}]},
        {"vm": "we\x1b[31m", "side": "site", "state": "Protected", "disks": []},
    ],
    "/VaultApi/points": [
        {"id": POINT, "time": "t", "name": "before"},
        {"id": "p2", "time": "t", "name": "scheduled"},
        {"id": "p3", "time": "t", "name": "scheduled"},
    ],
    "/VaultApi/mounted_points": [{"name": "@13", "position": 13}],
    "/VaultApi/jobs": [{"name": "7c42e561", "friendlyName": "Failover", "vm": "web01", "state": "Succeeded"}],
    "/DiskHostControl/list_disks": [{"name": "os", "kept": [{"file": "os-20261129T141500Z.img", "disk": "os"}]}],
    "/SupervisorControl/status": {"roles": [{"name": "agent", "state": "ready"}]},
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    monkeypatch.delenv(completion.WORDS_VARIABLE, raising=False)
    return layout


@pytest.fixture
def rig(layout: Layout) -> Iterator[Layout]:
    roles = ("vault", "supervisor", "site")
    servers = [socketserver.UnixStreamServer(str(layout.socket(role)), Handler) for role in roles]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    yield layout
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def offered(capsys: pytest.CaptureFixture[str], *words: str, of: str = "fish") -> list[str]:
    completion.answer(of, words)
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("points", ""), ["web01"]),
        (("failover", "test", "x"), []),
        (
            ("failover", "test", "web01", "--point", ""),
            ["latest", "latest-processed", "latest-app", "before", POINT, "p2", "p3"],
        ),
        (("failover", "test", "web01", "--point=5"), [f"--point={POINT}"]),
        (("point", "mount", "web01", "--point", "be"), ["before"]),
        (("bisect", "web01", "--good", "50"), [POINT]),
        (("point", "unmount", "web01", ""), ["@13"]),
        (("point", "export", "web01", "--disk", "o"), ["os"]),
        (("disk", "stats", "web01/"), ["web01/os", "web01/data"]),
        (("disk", "scrub", "web"), ["web01", "web01/os", "web01/data"]),
        (("jobs", ""), ["7c42e561"]),
        (("role", "restart", ""), ["agent"]),
        (("site", "lose", ""), ["site"]),
        (("fault", "add", "s"), ["store"]),
        (("fault", "add", "disk", ""), ["web01/os", "web01/data", "read", "write", "zero", "discard", "flush"]),
        (("fault", "add", "log", "web01/os", "a"), ["append"]),
        (("fault", "add", "process", "ag"), ["agent"]),
        (("fault", "add", "disk", "write", ""), []),
        (("fault", "add", "disk", "error=EIO", ""), []),
        (("disk", "kept", "list", ""), ["web01"]),
        (("disk", "kept", "delete", "web01", ""), ["os-20261129T141500Z.img"]),
        (("vm", "create", "web02", "--format", "q"), ["qcow2", "qcow", "qed"]),
        (("vm", "create", "web02", "--format", "os=vhd"), ["os=vhd", "os=vhdx"]),
        (("vm", "create", "web02", "--sector-size", ""), ["512", "4096"]),
        (("fail",), ["failover", "failback"]),
        (("failover", "p"), ["planned"]),
        (("points", "--lim"), ["--limit"]),
        (("disk", "stats", "web01/os", "--side", ""), ["site", "azure"]),
        (("alert", "set", "--security", "s"), ["starttls"]),
        (("alert", "set", "--folder", ""), [":files"]),
        (("mount", "disk"), [":files"]),
        (("mount", "disk.img", "--mnt", ""), [":files"]),
        (("log", "verify", "a.hrl", ""), [":files"]),
        (("no-such", ""), []),
    ],
)
def test_words_that_can_follow_are_offered(
    rig: Layout, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], found: list[str]
) -> None:
    assert sorted(offered(capsys, *words)) == sorted(found)


def test_every_command_is_offered_and_in_a_checkout_the_tests_too(
    layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered(capsys, "") == [word for words in SUBJECTS.values() for word in words]
    monkeypatch.setenv(completion.WORDS_VARIABLE, "test")
    assert offered(capsys, "te") == ["test"]
    assert offered(capsys, "test", "") == [":files"]


def test_a_rig_that_is_down_offers_nothing_and_prints_nothing(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    completion.answer("fish", ("points", ""))
    assert capsys.readouterr() == ("", "")


def test_a_role_that_hangs_is_not_waited_for(
    layout: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "ANSWER_S", 0.05)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(layout.socket("vault")))
        hung.listen()
        completion.answer("fish", ("points", ""))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "current", "found"),
    [
        ("siterig points w", "w", ["web01"]),
        ("siterig failover test web01 --point=5", "5", [POINT]),
        ("siterig point unmount web01 @1", "1", ["13"]),
        ('siterig failover test "web01" --point ', "", None),
        ("./rig points ", "", ["web01"]),
    ],
)
def test_bash_gets_the_words_after_its_current_one(
    rig: Layout, capsys: pytest.CaptureFixture[str], line: str, current: str, found: list[str] | None
) -> None:
    got = offered(capsys, line, current, of="bash")
    assert got == found if found is not None else POINT in got


# --- in the shells themselves -------------------------------------------------------------------------------------

IN_BASH = """
eval "$(siterig completion bash)"
complete -p siterig rig >/dev/null || exit 1
COMP_LINE="siterig points w"; COMP_POINT=${#COMP_LINE}
_siterig siterig w points 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
IN_ZSH = """
autoload -Uz compinit && compinit -u -D
eval "$(siterig completion zsh)"
[[ $_comps[rig] == _siterig ]] || exit 1
compadd() { print -l -- $values }
words=(siterig points w); CURRENT=3
_siterig
"""
IN_FISH = """
siterig completion fish | source
complete -C "siterig points w" | string split -f1 \\t
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "text"), [("bash", IN_BASH), ("zsh", IN_ZSH), ("fish", IN_FISH)])
def test_a_shell_completes_the_name_of_a_vm(rig: Layout, tmp_path: Path, shell: str, text: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "siterig"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m siterig "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = [path, "-f", "-c", text] if shell == "zsh" else [path, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.stdout.split() == ["web01"], done.stderr
