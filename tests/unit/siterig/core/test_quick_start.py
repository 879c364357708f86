"""The start of a role: modules that no role needs are not loaded, and work at the first use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from siterig.core.quick_start import load
server = load("siterig.rpc.server")
loaded = {"h2", "h2.events", "wsproto", "rich"} & set(sys.modules)
print(*sorted(loaded))

from pathlib import Path
import trio

async def ask(socket, request):
    stream = await trio.open_unix_socket(socket)
    await stream.send_all(request)
    with trio.fail_after(30):
        return await stream.receive_some()

async def main(socket):
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: server.serve({}, socket, task_status=task_status))
        print(await ask(socket, b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"))
        print(await ask(socket, b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))
        upgrade = b"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\n"
        key = b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\n"
        print(await ask(socket, b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n" + upgrade + key + b"\\r\\n"))
        nursery.cancel_scope.cancel()

trio.run(main, Path(sys.argv[1]))
print(*sorted({"h2", "wsproto"} & set(sys.modules)))
"""


def test_a_role_loads_http_2_and_websockets_when_a_connection_asks_for_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "socket")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    at_start, http_1, http_2, websocket, at_end = done.stdout.splitlines()
    assert "h2" not in at_start
    assert "wsproto" not in at_start
    assert "rich" not in at_start
    assert http_1.startswith("b'HTTP/1.1 200 ")
    assert http_2.startswith(r"b'\x00\x00")
    assert websocket.startswith("b'HTTP/1.1 ")
    assert at_end == "h2 wsproto"
