"""Calls without the libraries of the complete client (:mod:`siterig.rpc.client`), which take longer to load than a call.

A command that only reads asks this way first.  It gets a plain answer or none at all: if anything else happens (a role
does not answer in time, or answers with an error), the command asks again through the complete client, which waits,
reports and explains.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_BYTES_MAX = 4 << 20
"""The complete client reads longer answers."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``path`` is SERVICE/METHOD; ``arguments`` are values that JSON can hold."""

    socket: Path
    path: str
    arguments: dict[str, object] = field(default_factory=dict)


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, limit_s: float) -> None:
        super().__init__("rig", timeout=limit_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def answers(calls: Sequence[Call], limit_s: float) -> list[Any] | None:
    """Make all calls at the same time; return their results as JSON, or None unless all succeed.

    ``limit_s``: the longest wait for one answer, after those before it.
    """
    try:
        with ExitStack() as stack:
            connections = []
            for call in calls:
                connection = _Connection(call.socket, limit_s)
                stack.callback(connection.close)
                connection.request("POST", f"/{call.path}", json.dumps(call.arguments))
                connections.append(connection)
            return [_result(connection) for connection in connections]
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None


def answer(call: Call, limit_s: float) -> Any:
    """Make one call; return its result as JSON, or None unless it succeeds within ``limit_s`` seconds."""
    found = answers([call], limit_s)
    return None if found is None else found[0]


def _result(connection: http.client.HTTPConnection) -> Any:
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK or (response.length or 0) > ANSWER_BYTES_MAX:
        raise ValueError(response.status)
    return json.loads(response.read(ANSWER_BYTES_MAX))
