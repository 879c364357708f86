"""The address at which a Prometheus server of this host reads the metrics of the vault.

It is on loopback, which every user of the host can reach, so the reader needs the token in a file that only the owner of the
rig can read.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.core.metrics_address import read_token
from siterig.rpc.server import run_application
from siterig.rpc.tls_server import listen

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TOKEN_BYTES = 32


async def serve_metrics(
    text: Callable[[], Awaitable[str]],
    port_file: Path,
    token_file: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer ``GET /metrics`` until cancelled.

    Args:
        text: returns the metrics.
        port_file: gets the port; the port of the last start is taken if it is free.
        token_file: has the token; it is made if there is none.
        task_status: gets the start.
    """
    token = read_token(token_file)
    if token is None:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        safe_files.make_folder(token_file.parent, parents=True)
        write_atomically(token_file, f"{token}\n".encode(), mode=0o600)

    async def metrics(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            refusal = f"the token in {token_file} is needed: Authorization: Bearer TOKEN\n"
            return PlainTextResponse(refusal, 401, {"WWW-Authenticate": "Bearer"})
        try:
            return Response(await text(), media_type=CONTENT_TYPE)
        except RigError as error:
            return PlainTextResponse(f"{error.message} ({error.code})\n", 503)

    listener = listen(port_file)
    safe_files.make_folder(port_file.parent, parents=True)
    write_atomically(port_file, f"{listener.getsockname()[1]}\n".encode())
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    await run_application(Starlette(routes=[Route("/metrics", metrics)]), config, task_status=task_status)
