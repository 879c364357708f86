#!/usr/bin/env bash
# Writes requirements.lock and requirements-test.lock from pyproject.toml; needs uv.  A pinned version stays unless
# pyproject.toml forbids it; arguments go to uv: tools/lock.sh --upgrade, tools/lock.sh --upgrade-package trio.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

pinned() { grep -hv '^#' "$@"; }

compile() { # FILE [UV-ARG ...]: all packages that are needed, pinned; the pins that FILE has are preferred
    local file=$1
    shift
    printf '%s\n' 'setuptools>=77' cffi cython setuptools-scm |
        uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --no-annotate --no-header \
            --no-emit-index-url -o "$file" "$@" pyproject.toml -
}

write() { # LOCK: its comment as it is, then the lines of standard input
    { grep '^#' "$1" && cat; } >"$work/new" && cp -- "$work/new" "$1"
}

pinned requirements.lock >"$work/run"
pinned requirements.lock requirements-test.lock >"$work/all"
compile "$work/run" "$@"
compile "$work/all" --extra test -c "$work/run" "$@"
write requirements.lock <"$work/run"
grep -vxFf "$work/run" "$work/all" | write requirements-test.lock
