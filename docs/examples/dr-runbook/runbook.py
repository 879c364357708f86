"""Recover a VM after the loss of its site: ``python runbook.py RIG VM``.

1. Fail over to the newest recovery point.
2. Mount the recovered disk, and check that the file of orders is whole.
3. Make the failover final.  A failover with bad data stays open, so that another recovery point can be chosen.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path


class RunbookError(Exception):
    """A step failed; the text names it."""


def siterig(rig, *words):
    """Run a command of siterig on the rig, and return its last value of JSON."""
    command = [sys.executable, "-m", "siterig", *words, "--dir", str(rig), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        *_, last = done.stderr.splitlines()
        raise RunbookError(f"{' '.join(words)}: {json.loads(last)['error']['message']}")
    value, rest = None, done.stdout.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].strip()
    return value


@contextmanager
def mounted(disk):
    """Mount the file system of a disk for the time of the block."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def count_orders(folder):
    """Return the number of orders; raise RunbookError if the file is not whole."""
    text = (folder / "orders.csv").read_text()
    header, *orders = text.splitlines()
    if header != "id,amount" or not text.endswith("\n") or any(len(order.split(",")) != 2 for order in orders):
        raise RunbookError("orders.csv is not whole: choose an earlier recovery point")
    return len(orders)


def recover(rig, vm):
    """Recover a VM, and return a report."""
    job = siterig(rig, "failover", "unplanned", vm)["job"]
    (disk,) = job["result"]["disks"]
    with mounted(disk["path"]) as folder:
        orders = count_orders(folder)
    siterig(rig, "commit", vm)
    return {"vm": vm, "disk": disk["path"], "position": job["recovery_point"]["position"], "orders": orders}


if __name__ == "__main__":
    print(json.dumps(recover(*sys.argv[1:])))
