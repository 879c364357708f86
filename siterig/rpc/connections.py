"""The connections of hypercorn's server, of which none can end the server.

hypercorn 0.18 calls ``send_eof`` beside a running ``send_all`` if the peer ends in the middle of a request that is answered
already, and an error of a connection other than ``OSError`` ends the server, and with it the role.
"""

from __future__ import annotations

import structlog
import trio
from hypercorn.trio import run
from hypercorn.trio.tcp_server import TCPServer

_log = structlog.get_logger(__name__)


class ContainedConnection(TCPServer):
    """One connection.  An error ends this connection only, and is logged with its traceback."""

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            await super().run()
        except* Exception:
            _log.exception("connection_crashed")
            await trio.aclose_forcefully(self.stream)

    async def _close(self) -> None:
        """Close the stream; its end is announced unless an answer is on its way, which a slow peer could delay for ever."""
        try:
            self.send_lock.acquire_nowait()
        except (trio.WouldBlock, RuntimeError):  # the second: this task has the lock itself
            await self.stream.aclose()
            return
        try:
            await super()._close()
        finally:
            self.send_lock.release()


def contain_errors() -> None:
    """Let hypercorn serve each connection as a :class:`ContainedConnection`; it has no setting for this."""
    vars(run)["TCPServer"] = ContainedConnection
