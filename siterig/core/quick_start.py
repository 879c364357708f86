"""Starts a process of a rig: ``python -m siterig.core.quick_start MODULE ARG ...`` runs ``main()`` of the module.

To load its modules is nearly all that a role does in its first second.  Three things make that quicker by a quarter: the
garbage collector finds nothing in modules that are being loaded, so it is off meanwhile; structlog loads rich wherever
it is installed, for logs on a terminal, which no role writes; and hypercorn loads HTTP/2 and websockets, which no client
of a role speaks, so it gets them at the first connection that asks for them.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_ON_DEMAND = {"hypercorn.protocol.h2": "H2Protocol", "hypercorn.protocol.ws_stream": "WSStream"}
"""Modules of hypercorn that are loaded by the first use of the class that they are imported for."""
_FOR_ANNOTATIONS = ("h2", "h2.events")
"""Modules that hypercorn imports for its annotations only."""


def command(module: str) -> list[str]:
    """Return the first words of a command line that runs ``main()`` of ``module``."""
    return [sys.executable, "-P", "-m", __spec__.name, module]


def parse(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the module and the arguments of a command line that begins with :func:`command`."""
    begin = len(command(""))
    if list(words[: begin - 1]) != command("")[:-1]:
        raise ValueError(f"{words} is no command of {__name__}")
    return words[begin - 1], list(words[begin:])


def load(module: str) -> ModuleType:
    """Import a module with all that it imports."""
    gc.disable()
    try:
        _load_structlog_without_rich()
        _load_hypercorn_for_http_1()
        sys.modules.setdefault("click", None)  # type: ignore[arg-type] # with it, which mkdocs brings, httpx loads its own program and rich
        return importlib.import_module(module)
    finally:
        if sys.modules.get("click", "") is None:
            del sys.modules["click"]
        gc.freeze()  # the collector does not examine the loaded modules again
        gc.enable()


def _load_structlog_without_rich() -> None:
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # so that "import rich" fails as if it were not installed
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]


def _load_hypercorn_for_http_1() -> None:
    if any(name in sys.modules for name in ("hypercorn", *_FOR_ANNOTATIONS)):
        return
    stand_ins = {name: ModuleType(name) for name in (*_ON_DEMAND, *_FOR_ANNOTATIONS)}
    for name, wanted in _ON_DEMAND.items():
        setattr(stand_ins[name], wanted, _on_demand(name, wanted))
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("hypercorn.trio")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _on_demand(module: str, name: str) -> Any:
    def make(*arguments: object, **named: object) -> object:
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return make


def main() -> None:
    """Load the module that the command line names, and run its ``main()`` with the arguments after it."""
    module = sys.argv.pop(1)
    load(module).main()


if __name__ == "__main__":
    main()
