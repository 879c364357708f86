"""Check every pinned Python and npm package for known vulnerabilities, with the database of osv.dev.

``python tools/check_locks.py`` in a checkout; for maintainers, not for CI, because the answer changes without a change here.
Exit status 0: none is known.  1: some are, each in one line with its page.  2: the database cannot be reached.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
PYTHON_LOCKS = ("requirements.lock", "requirements-test.lock")
NPM_LOCK = "package-lock.json"
DATABASE = "https://api.osv.dev/v1/querybatch"
PAGE = "https://osv.dev/vulnerability/"
BATCH_MAX = 500
TIMEOUT_S = 30.0


@dataclass(frozen=True, order=True)
class Package:
    """A pinned package; ``ecosystem`` as OSV names it: ``PyPI`` or ``npm``."""

    ecosystem: str
    name: str
    version: str


def python_packages(text: str) -> set[Package]:
    """Return the packages of a requirements lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {Package("PyPI", name, version) for name, version in found}


def npm_packages(text: str) -> set[Package]:
    """Return the packages of a package-lock.json."""
    packages = json.loads(text)["packages"]
    return {
        Package("npm", entry.get("name", path.rpartition("node_modules/")[2]), entry["version"])
        for path, entry in packages.items()
        if path and not entry.get("link")
    }


def pinned(root: Path = ROOT) -> list[Package]:
    """Return all packages of the locks."""
    found = {package for name in PYTHON_LOCKS for package in python_packages((root / name).read_text())}
    return sorted(found | npm_packages((root / NPM_LOCK).read_text()))


def vulnerabilities(client: httpx.Client, packages: list[Package]) -> dict[Package, list[str]]:
    """Return the ids of the known vulnerabilities of each package that has some."""
    found: dict[Package, list[str]] = {}
    for begin in range(0, len(packages), BATCH_MAX):
        batch = packages[begin : begin + BATCH_MAX]
        queries = [{"package": {"name": p.name, "ecosystem": p.ecosystem}, "version": p.version} for p in batch]
        answer = client.post(DATABASE, json={"queries": queries})
        answer.raise_for_status()
        for package, result in zip(batch, answer.json()["results"], strict=True):
            if ids := [known["id"] for known in result.get("vulns", [])]:
                found[package] = ids
    return found


def main() -> int:
    """Check the locks of this checkout; the exit status."""
    packages = pinned()
    try:
        with httpx.Client(timeout=TIMEOUT_S) as client:
            found = vulnerabilities(client, packages)
    except httpx.HTTPError as error:
        print(
            f"check_locks: nothing was checked: {DATABASE} cannot be asked: {error or type(error).__name__}", file=sys.stderr
        )
        return 2
    for package, ids in found.items():
        print(f"{package.ecosystem} {package.name} {package.version}: {' '.join(PAGE + each for each in ids)}")
    print(f"{len(packages)} packages checked, {len(found)} with known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
