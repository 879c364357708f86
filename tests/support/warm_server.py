"""The process of :mod:`tests.support.warm_command`: it has loaded all commands, and forks for each command that it gets.

It answers one request at a time on the Unix socket whose descriptor is its argument, and ends when the socket is closed:

- ``{"words": [...], "cwd": ..., "environment": {...}, "new_session": ...}`` with three descriptors, standard input, output
  and errors, starts a command; the answer has its process id.
- ``{"status_of": PID}`` waits for the end of a command; the answer has the status, as :func:`os.waitpid` returns it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import traceback
from typing import Any

MESSAGE_BYTES_MAX = 1 << 18


def main() -> None:
    """Serve until the tests close the socket."""
    server = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    preload()
    gc.freeze()
    gc.enable()
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, MESSAGE_BYTES_MAX, 3)
        if not message:
            return
        request = json.loads(message)
        if "status_of" in request:
            answer = {"status": os.waitpid(request["status_of"], 0)[1]}
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            server.close()
            run(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        server.sendall(json.dumps(answer).encode())


def preload() -> None:
    """Load everything that commands load at the start."""
    from siterig.__main__ import main as _  # noqa: F401
    from siterig.cli.app import program

    program()
    for module in ("siterig.images.image_mount", "siterig.rpc.client", "siterig.supervisor.launch"):
        importlib.import_module(module)


def run(request: dict[str, Any], descriptors: list[int]) -> None:
    """Become the command: its streams, environment, working directory and words; does not return.

    An exception that the command does not handle is printed, as Python does at the end of a process.
    """
    status = 1
    try:
        if request["new_session"]:
            os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["siterig", *request["words"]]
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = status_of_main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def status_of_main() -> int:
    """Run the command, and return its exit status."""
    from siterig.__main__ import main as command

    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
