"""The process of :mod:`tests.support.warm_command`: it has loaded modules, and forks for each program that it gets.

It answers one request at a time on the Unix socket whose descriptor is its first argument, and ends when the socket is
closed:

- A :class:`tests.support.forked_program.Program` with its descriptors starts a program; the answer has its process id.
- ``{"status_of": PID}`` waits for the end of a program; the answer has the status, as :func:`os.waitpid` returns it.

Its second argument has no meaning: a program can have a command line of that length.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys

from tests.support.forked_program import DESCRIPTORS_MAX, Program, load, loading

MESSAGE_BYTES_MAX = 1 << 18


def main() -> None:
    """Serve until the tests close the socket."""
    server = socket.socket(fileno=int(sys.argv[1]))
    with loading():
        load_commands()
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
        if not message:
            return
        request = json.loads(message)
        if "status_of" in request:
            answer = {"status": os.waitpid(request["status_of"], 0)[1]}
        else:
            program = Program(**request)
            for module in program.loads:
                load(module)
            answer = {"pid": program.fork(descriptors)}
        for descriptor in descriptors:
            os.close(descriptor)
        server.sendall(json.dumps(answer).encode())


def load_commands() -> None:
    """Load everything that commands load at the start."""
    from siterig.cli.app import program

    program()
    for module in ("siterig.__main__", "siterig.images.image_mount", "siterig.rpc.client", "siterig.supervisor.launch"):
        importlib.import_module(module)


if __name__ == "__main__":
    main()
