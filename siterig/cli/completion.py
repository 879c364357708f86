"""Completion in a shell: commands, options, files, and the names that a rig knows.

The shell functions of :func:`script` call the program that is being typed, with ``_SITERIG_COMPLETE`` set and the words up
to the cursor; it prints one candidate a line, and after a tab what it is.  A rig that is down or slow has no candidates,
and says nothing: the answer is bounded by ``ANSWER_S``.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siterig.blockfs.core.errors import RigError
from siterig.cli import output, tables
from siterig.core.paths import Layout, default_dir

if TYPE_CHECKING:
    import typer

VARIABLE = "_SITERIG_COMPLETE"
"""The shell that asks; its words are the program's arguments."""
WORDS_VARIABLE = "_SITERIG_WORDS"
"""More first words that the program takes: those of ``./rig`` itself."""
ANSWER_S = 1.0
POINTS_MAX = 100
FILES = ":files"
"""Printed alone: the shell is to complete the name of a file."""


# --- what a rig knows ---------------------------------------------------------------------------------------------


def _ask(ctx: Any, role: str, method: str, **arguments: object) -> list[dict[str, Any]]:
    """The objects that a role answers with; none if it does not answer soon.  Nothing of the RPC client is loaded."""
    folder = ctx.params.get("folder") or Path(os.environ.get("SITERIG_DIR") or default_dir())
    return _ask_at(Layout.of(folder).socket(role), method, **arguments)


def _ask_at(socket: Path, method: str, **arguments: object) -> list[dict[str, Any]]:
    from siterig.rpc import light_client

    found = light_client.answer(light_client.Call(socket, method, arguments), ANSWER_S)
    if isinstance(found, dict):
        found = found.get("roles") or found.get("rules", [])
    return [each for each in found or [] if isinstance(each, dict)]


def _vm(ctx: Any) -> str:
    return str(ctx.params.get("vm") or "")


def vms(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of VMs of both sides."""
    found = _ask(ctx, "vault", "VaultApi/list_vms")
    return _beginning(incomplete, ((vm.get("vm"), f"{vm.get('side')}, {vm.get('state')}") for vm in found))


def disks(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the disks as ``VM/NAME``."""
    found = _ask(ctx, "vault", "VaultApi/list_vms")
    names = ((f"{vm.get('vm')}/{disk.get('name')}", str(vm.get("side"))) for vm in found for disk in vm.get("disks", []))
    return _beginning(incomplete, names)


def vms_and_disks(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of VMs and disks, for commands that take either."""
    return vms(ctx, incomplete) + disks(ctx, incomplete)


def disks_of_vm(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the disks of the VM that was given."""
    found = _ask(ctx, "vault", "VaultApi/list_vms")
    mine = [disk.get("name") for vm in found if vm.get("vm") == _vm(ctx) for disk in vm.get("disks", [])]
    return _beginning(incomplete, ((name, "disk") for name in dict.fromkeys(mine)))


def points(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the words for the newest points, then the ids, and the names that only one point has."""
    words = [("latest", "lowest RPO"), ("latest-processed", "lowest RTO"), ("latest-app", "application-consistent")]
    found = _ask(ctx, "vault", "VaultApi/points", vm=_vm(ctx), limit=POINTS_MAX) if _vm(ctx) else []
    names = [point.get("name") for point in found]
    ids = [(point.get("id"), f"{point.get('time')} {point.get('name')}") for point in found]
    unique = [(name, "point") for name in names if name and names.count(name) == 1]
    return _beginning(incomplete, [*words, *unique, *ids])


def mounted(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the folders of mounted points of the VM that was given."""
    found = _ask(ctx, "vault", "VaultApi/mounted_points", vm=_vm(ctx)) if _vm(ctx) else []
    return _beginning(incomplete, ((state.get("name"), f"position {state.get('position')}") for state in found))


def kept(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the images that a failback of the VM that was given has kept."""
    found = _ask(ctx, "site", "DiskHostControl/list_disks", vm=_vm(ctx)) if _vm(ctx) else []
    images = [image for disk in found for image in disk.get("kept", []) if isinstance(image, dict)]
    return _beginning(incomplete, ((image.get("file"), f"disk {image.get('disk')}") for image in images))


def key_versions(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the versions of the vault's key, with their states."""
    found = _ask(ctx, "vault", "VaultApi/vault_keys")
    return _beginning(incomplete, ((str(each.get("version")), str(each.get("state"))) for each in found))


def of_disk(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete ``VALUE`` and ``NAME=VALUE``, whatever the name of the disk."""

    def complete(incomplete: str) -> list[str]:
        name, equals, _ = incomplete.rpartition("=")
        return [text for value in values if (text := name + equals + value).startswith(incomplete)]

    return complete


def jobs(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of jobs."""
    found = _ask(ctx, "vault", "VaultApi/jobs")
    about = ((job.get("name"), f"{job.get('friendlyName')} {job.get('vm')}: {job.get('state')}") for job in found)
    return _beginning(incomplete, about)


def health_errors(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the codes of the health errors of the VM that was given."""
    items = [item for item in _ask(ctx, "vault", "VaultApi/items") if item.get("vm") == _vm(ctx)]
    found = [error for item in items for error in item.get("healthErrors", []) if isinstance(error, dict)]
    return _beginning(incomplete, ((error.get("errorCode"), str(error.get("summaryMessage"))) for error in found))


def cancellable_jobs(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the jobs that can be cancelled."""
    found = (job for job in _ask(ctx, "vault", "VaultApi/jobs") if "Cancel" in job.get("allowedActions", []))
    about = ((job.get("name"), f"{job.get('friendlyName')} {job.get('vm')}") for job in found)
    return _beginning(incomplete, about)


def faults(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the fault rules of a rig or mount."""
    mount = ctx.params.get("mnt")
    found = _faults_of_mount(mount) if mount else _ask(ctx, "faults", "FaultControl/list_faults")
    return _beginning(incomplete, ((rule.get("name"), f"{rule.get('layer')}, {rule.get('state')}") for rule in found))


def fault_words(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the layers of fault rules, or for a layer its targets and operations."""
    from siterig.scenarios.faults.catalog import LAYERS

    words = ctx.params.get("words") or []
    if not words:
        return _beginning(incomplete, ((name, layer.about) for name, layer in LAYERS.items()))
    layer = LAYERS.get(words[0])
    if layer is None or any("=" in word for word in words):
        return []
    has_target = len(words) > 1
    targets = (
        {("vm", "disk"): disks, ("role",): roles}.get(layer.target) if not has_target and not ctx.params.get("mnt") else None
    )
    operations = [] if words[-1] in layer.operations else [(name, "operation") for name in layer.operations]
    return [*(targets(ctx, incomplete) if targets else []), *_beginning(incomplete, operations)]


def _faults_of_mount(mount: Path) -> list[dict[str, Any]]:
    from siterig.images.mount_sockets import find_mount, socket_of

    with contextlib.suppress(RigError):
        return _ask_at(socket_of(find_mount(mount)), "FaultControl/list_faults")
    return []


def roles(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of the rig's roles."""
    found = _ask(ctx, "supervisor", "SupervisorControl/status")
    return _beginning(incomplete, ((role.get("name"), str(role.get("state"))) for role in found))


def _beginning(incomplete: str, candidates: Iterable[tuple[object, str]]) -> list[tuple[str, str]]:
    """Candidates that continue what was typed; a name that is not printable cannot be typed, either."""
    return [
        (name, about)
        for name, about in candidates
        if isinstance(name, str) and name.startswith(incomplete) and name.isprintable()
    ]


# --- the program's side -------------------------------------------------------------------------------------------


def answer(shell: str, words: Sequence[str]) -> None:
    """Print the candidates for the last of ``words``; of bash these are its line up to the cursor, and its current word.

    A candidate is what takes the place of the word; bash keeps what precedes its current word.
    """
    current = None
    if shell == "bash":
        line, current = words
        words = words_of_bash(line)
    *before, incomplete = words or [""]
    option = re.match(r"--[^=]+=", incomplete)
    prefix = option[0] if option is not None else ""
    kept = 0 if current is None else max(len(incomplete) - len(_unquoted(current)), 0)
    for value, about in _candidates(before, incomplete):
        text = value if value == FILES else (prefix + value)[kept:]
        output.line(text, *([tables.TAB, about] if about else []))


def _candidates(before: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    from siterig.cli.app import SUBJECTS, program  # it loads this module

    ours = os.environ.get(WORDS_VARIABLE, "").split()
    if not before and not incomplete.startswith("-"):
        first = [*(word for words in SUBJECTS.values() for word in words), *ours]
        return [(word, "") for word in first if word.startswith(incomplete)]
    if before and before[0] in ours:
        return [(FILES, "")]
    if before and not any(before[0] in words for words in SUBJECTS.values()):
        return []
    return _of_command(program(before), list(before), incomplete)


def _of_command(app: typer.Typer, before: list[str], incomplete: str) -> list[tuple[str, str]]:
    from typer._click.shell_completion import _resolve_context, _resolve_incomplete
    from typer.main import get_command

    command = get_command(app)
    ctx = _resolve_context(command, {}, "siterig", before)
    wanted, incomplete = _resolve_incomplete(ctx, before, incomplete)
    if before and before[-1] in getattr(wanted, "opts", ()):  # an option without its value spoils the values of the others
        ctx = _resolve_context(command, {}, "siterig", before[:-1])
    found = wanted.shell_complete(ctx, incomplete)
    if not found and _is_path(ctx, getattr(wanted, "name", None)):
        return [(FILES, "")]
    return [(item.value, (item.help or "").partition("\n")[0]) for item in found]


def _is_path(ctx: Any, name: str | None) -> bool:
    callback = getattr(ctx.command, "callback", None)
    hint = typing.get_type_hints(callback).get(name) if callback is not None and name is not None else None
    return Path in (hint, *typing.get_args(hint))


# --- the shell's side ---------------------------------------------------------------------------------------------

_BASH = r"""# Completion of siterig and ./rig for bash: eval "$(siterig completion bash)"
_siterig() {
    local program=${1/#\~/$HOME} line=${COMP_LINE:0:COMP_POINT} word=$2 i
    COMPREPLY=()
    mapfile -t COMPREPLY < <(_SITERIG_COMPLETE=bash "$program" "$line" "$word" 2>/dev/null </dev/null)
    if [[ ${COMPREPLY[0]-} == :files ]]; then
        COMPREPLY=()
        compopt -o default
        return
    fi
    for i in "${!COMPREPLY[@]}"; do
        printf -v "COMPREPLY[$i]" %q "${COMPREPLY[i]%%$'\t'*}"
    done
}
complete -F _siterig siterig rig
"""
_ZSH = r"""#compdef siterig rig
# Completion of siterig and ./rig for zsh, after compinit: eval "$(siterig completion zsh)"
_siterig() {
    local -a lines values shown
    local line
    lines=("${(@f)$(_SITERIG_COMPLETE=zsh ${~words[1]} "${(@Q)words[2,CURRENT]}" 2>/dev/null </dev/null)}")
    if [[ ${lines[1]} == :files ]]; then
        _files
        return
    fi
    for line in $lines; do
        values+=("${line%%$'\t'*}")
        shown+=("${line/$'\t'/  -- }")
    done
    compadd -l -d shown -a values
}
compdef _siterig siterig rig
"""
_FISH = r"""# Completion of siterig and ./rig for fish: siterig completion fish | source
function _siterig
    set -l words (commandline -opc) (commandline -ct)
    set -l found (env _SITERIG_COMPLETE=fish $words[1] $words[2..-1] 2>/dev/null </dev/null)
    if test "$found[1]" = ":files"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $found
    end
end
complete -c siterig -c rig -f -a '(_siterig)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """Return the text that the shell has to evaluate."""
    return SCRIPTS[shell]


def words_of_bash(line: str) -> list[str]:
    """Return the words of a command line up to the cursor, without the program.

    They are not taken from ``COMP_WORDS``: bash breaks words at ``:``, ``=`` and ``@``, too.
    """
    words = [_unquoted(word) for word in re.findall(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"?|'[^']*'?)+""", line)]
    if not line or line[-1].isspace():
        words.append("")
    return words[1:]


def _unquoted(word: str) -> str:
    return re.sub(r"""\\(.)|["']""", lambda match: match[1] or "", word)
