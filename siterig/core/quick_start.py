"""Starts a process of a rig: ``python -m siterig.core.quick_start MODULE ARG ...`` runs ``main()`` of the module.

To load its modules is nearly all that a role does in its first second.  Two things make that quicker by a fifth: the
garbage collector finds nothing in modules that are being loaded, so it is off meanwhile; and structlog loads rich wherever
it is installed, for logs on a terminal, which no role writes.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType


def command(module: str) -> list[str]:
    """Return the first words of a command line that runs ``main()`` of ``module``."""
    return [sys.executable, "-P", "-m", __spec__.name, module]


def load(module: str) -> ModuleType:
    """Import a module with all that it imports."""
    gc.disable()
    try:
        _load_structlog_without_rich()
        sys.modules.setdefault("click", None)  # type: ignore[arg-type] # with it, which mkdocs brings, httpx loads its own program and rich
        return importlib.import_module(module)
    finally:
        if sys.modules.get("click", "") is None:
            del sys.modules["click"]
        gc.freeze()  # what is loaded now is not looked at again
        gc.enable()


def _load_structlog_without_rich() -> None:
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # so that "import rich" fails as if it were not installed
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]


def main() -> None:
    """Load the module that the command line names, and run its ``main()`` with the arguments after it."""
    module = sys.argv.pop(1)
    load(module).main()


if __name__ == "__main__":
    main()
