"""Checks of the language of code and documents: docstrings, comments, option help and Markdown.

CONTRIBUTING.md has the rules.  :func:`problems` lists what a file violates, each as a line ``file:line: why``.
Rooms and files are named by their path: ``blockfs/core``, ``cext/src/disk``, ``docs/cli.md``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
PYTHON_FOLDERS = ("blockfs", "azure_emu", "replication", "scenarios", "siterig", "cext", "bench", "tests", "tools")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "siterig/manual/commands/*.md", "bench/*.md")
SHELL_SCRIPTS = ("rig", ".ci/run", "tools/*.sh")
GENERATED = ("docs/reference/commands",)
"""Folders of pages that are drawn from the help of the commands and from siterig/manual, which are checked themselves."""

SUMMARY_OPENINGS = re.compile(
    r"(What|Whatever|Who|Whoever|Whose|Whether|Which|Of|As|See|That|Those|How|One (that|who|which)|The ones?|Just"
    r"|None\.|Nothing\.|Same|The same (of|as)|Not)(?![\w-])"
)
"""First words of a docstring that make it a fragment, not a sentence about the name."""

_FRAGMENT = re.compile(r"[.,;:]|(?:\S+ ){0,4}\S+'s\.$|(?:``[^`]*``[.,;]?\s*)+$|\S+$")
"""A docstring of codes only, of one word, or like "One vault's."."""

SENTENCE_OPENINGS = re.compile(
    r"(?:^|(?<=[.:;!?)]\s)|(?<=[.:;!?)]\s\s))(What|Who|Whoever|Whatever|Whose|Whether|None\."
    r"|Of(?! (?:these|those|the [0-9]|[0-9])))(?=\s)(?P<rest>[^.!?]*[.!?]?)",
    re.MULTILINE,
)
"""A sentence that begins with a clause in place of a name.  A question may begin so."""

_PERSON = "him|her|them|it|us|you|users?|siterig"
_CLOSED = r"clos(?:e|es|ed|ing)|end(?:s|ed)?|stop(?:s|ped|ping)?|unmount(?:s|ed)?|exit(?:s|ed)?|back|down|left|leaves?"
PHRASES = {
    r"\b(?:is|are|was|were|be|been|being) (?:\w+ )?told\b": 'write "reported", "logged" or "returned" for "told"',
    rf"\b(?:told|tells?|telling) (?:of|so|{_PERSON})\b": 'write "report", "log" or "return" for "tell"',
    r"\b(?:say|says|said|saying) (?:so|not)\b": 'write "report", "log" or "raise" for "say so"',
    r"\b(?:give|gives|giving|given|gave) (?:\w+ )?up\b": 'write "abandon", "stop" or "release" for "give up"',
    r"\b(?:go|goes|going|gone|went) on\b(?! top)": 'write "continue" or "happen" for "go on"',
    r"\blet(?:s|ting)? (?:\w+ )?go\b": 'write "release" for "let go"',
    r"\b(?:made|makes?|making|written|writes?) (?:\w+ )?anew\b": 'write "rebuild" for "make anew"',
    r"\b(?:made|make|makes|making) (?:it |them )?again\b": 'write "rebuild" for "make again"',
    rf"\b(?:{_CLOSED})\b(?: \w+){{0,2}} in order\b(?! (?:to|of|by)\b)": 'write "cleanly" for "in order"',
    r"\b(?:whoever|whomever|whosoever)\b": 'name the person or program for "whoever"',
    r"\bthat which\b": 'name the thing for "that which"',
    r"\bthe same of\b": 'write a full sentence for "the same of"',
    r"\b(?:of|for|by|in|with|to|from|at|on|than|but) what (?:is|are|was|were|has|had)\b": 'name the thing for "what is"',
    r"\bnot as (?:it|they) (?:was|were) written\b": 'write "corrupt" or "changed"',
    r"\b(?:he|him|his|she|her|hers)\b": 'programs have no gender, and users are "they"',
    r"\bin the midst of\b": 'write "during"',
    r"\b(?:rightly|therein|thereof|whereof|wherein|whereby|thereby|hereby)\b": "write a common word",
}
"""Phrases that are not plain English, and the words to use instead."""


NAME_PHRASES = {
    r"\b(?:what|whoever|whom)\b": 'name the thing for "what"',
    r"\b(?:told|tells?|says?|said)\b": 'write "reported", "named" or "shown"',
    r"\b(?:anew|lent|settles?|settled|insists?)\b": "write a common word",
    r"\bfolded\b": 'write "compacted"',
}
"""The same for the names of tests, which are short: each is a sentence without punctuation."""


def _any_space(pattern: str) -> str:
    return pattern.replace(" ", r"\s+")


_PHRASES = [(re.compile(_any_space(pattern), re.IGNORECASE), advice) for pattern, advice in PHRASES.items()]
_NAME_PHRASES = [(re.compile(pattern), advice) for pattern, advice in (PHRASES | NAME_PHRASES).items()]
_CODE_SPAN = re.compile(r"``.*?``|`[^`\n]*`|:\w+:`[^`]*`", re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]*"|“[^”]*”')


@dataclass
class Problems:
    """Problems of one file, in the order of its lines."""

    path: str
    lines: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, why: str) -> None:
        """Record one problem."""
        self.lines.append((line, why))

    def report(self) -> list[str]:
        """Return the problems as lines ``file:line: why``."""
        return [f"{self.path}:{line}: {why}" for line, why in sorted(set(self.lines))]


def check_prose(text: str, line: int, found: Problems, *, openings: bool = True) -> None:
    """Check phrases and sentence openings of a text that begins at ``line``; code and quotations are skipped."""
    blank = _QUOTED.sub(_blanked, _CODE_SPAN.sub(_blanked, text))
    for pattern, advice in _PHRASES:
        for match in pattern.finditer(blank):
            found.add(line + blank.count("\n", 0, match.start()), f'"{" ".join(match[0].split())}": {advice}')
    if not openings:
        return
    for match in SENTENCE_OPENINGS.finditer(blank):
        if not match["rest"].endswith("?"):
            found.add(line + blank.count("\n", 0, match.start()), f'a sentence begins with "{match[1]}": name the thing')


def check_name(name: str) -> list[str]:
    """Return the problems of a name like ``test_a_lost_site_stays_down``."""
    text = name.replace("_", " ")
    return [f'"{match[0]}": {advice}' for pattern, advice in _NAME_PHRASES if (match := pattern.search(text))]


_CODES_ONLY = re.compile(r"\(``[A-Z]\w*[a-z]\w*``(?:(?:, | or |, or )``[A-Z]\w*[a-z]\w*``)*\)")
_NO_VERB = re.compile(
    r"(?:The|An?|One|True|False|Names?|Paths?|Lines?|Versions?|Bytes|All|Each|For|From|So|Why|This)(?![\w-])"
)
_FIXTURE_OR_VALUE = ("property", "fixture", "validator", "setter")


def _check_form(node: ast.FunctionDef | ast.AsyncFunctionDef, found: Problems) -> None:
    """Check that a function's docstring begins with a verb and names its errors under ``Raises:``."""
    text = ast.get_docstring(node) or ""
    line = node.body[0].lineno
    for match in _CODES_ONLY.finditer(text.partition("Raises:")[0]):
        found.add(line + text.count("\n", 0, match.start()), f'"{match[0]}": name the errors under "Raises:"')
    if node.name.startswith("_") or any(word in ast.unparse(d) for d in node.decorator_list for word in _FIXTURE_OR_VALUE):
        return
    if opening := _NO_VERB.match(text):
        found.add(line, f'the docstring begins with "{opening[0]}": begin with a verb, like "Return" or "Print"')


def _blanked(match: re.Match[str]) -> str:
    """Return as many characters, so that line numbers stay; a word stands for code."""
    return "".join("\n" if char == "\n" else "x" for char in match[0])


@dataclass
class Class:
    """Names of the bases of a class, and its methods that have a docstring."""

    bases: set[str]
    documented: set[str]


def classes(trees: Iterable[ast.AST]) -> dict[str, list[Class]]:
    """Return all classes in these trees by name."""
    known: dict[str, list[Class]] = {}
    for tree in trees:
        for node in _definitions(tree):
            if isinstance(node, ast.ClassDef):
                methods = {i.name for i in node.body if isinstance(i, _FUNCTIONS) and ast.get_docstring(i)}
                known.setdefault(node.name, []).append(Class({_base_name(base) for base in node.bases}, methods))
    return known


def _definitions(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all classes, functions, keyword arguments and expressions that stand alone, quicker than ``ast.walk``."""
    waiting: list[object] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, ast.AST) and not isinstance(node, _LEAVES):
            if isinstance(node, _DEFINITIONS):
                yield node
            waiting.extend(vars(node).values())


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (ast.ClassDef, ast.Expr, ast.keyword, *_FUNCTIONS)
_LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.cmpop)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _base_name(base: ast.expr) -> str:
    while isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def inherits_docstring(bases: set[str], method: str, known: dict[str, list[Class]]) -> bool:
    """Return True if a base class, by name, has a docstring for this method."""
    waiting, seen = set(bases), set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for base in known.get(name, []):
            if method in base.documented:
                return True
            waiting |= base.bases - seen
    return False


def python_files() -> list[Path]:
    """Return all Python files of the code, the benchmarks and the tests."""
    return [path for folder in PYTHON_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def c_files() -> list[Path]:
    """Return all C files of the product and of its tests."""
    return sorted([*(ROOT / "cext" / "src").rglob("*.[ch]"), *(ROOT / "tests").rglob("*.[ch]")])


def documents() -> list[Path]:
    """Return all documents for users and contributors."""
    drawn = {ROOT / folder for folder in GENERATED}
    return sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern) if path.parent not in drawn})


def shell_scripts() -> list[Path]:
    """Return all shell scripts."""
    return sorted(path for pattern in SHELL_SCRIPTS for path in ROOT.glob(pattern))


def room_of(path: str) -> str:
    """Return the room of a file, by which it can be pending: its folder, or for a document the file itself."""
    return path if path.endswith(".md") else path.rpartition("/")[0]


def problems() -> dict[str, list[str]]:
    """Return all problems by room."""
    texts = {path: path.read_text() for path in (*python_files(), *c_files(), *documents(), *shell_scripts())}
    trees = {path: ast.parse(text) for path, text in texts.items() if path.suffix == ".py"}
    known, scripts = classes(trees.values()), set(shell_scripts())
    found: dict[str, list[str]] = {}
    for path, text in texts.items():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            lines = check_python(name, text, trees[path], known)
        elif path in scripts:
            lines = check_shell(name, text)
        else:
            lines = check_document(name, text) if path.suffix == ".md" else check_c(name, text)
        if lines.lines:
            found.setdefault(room_of(name), []).extend(lines.report())
    return found


def check_python(
    path: str, text: str, tree: ast.Module | None = None, known: dict[str, list[Class]] | None = None
) -> Problems:
    """Check docstrings, comments and the help of options in one Python file."""
    found = Problems(path)
    tree = ast.parse(text) if tree is None else tree
    known = classes([tree]) if known is None else known
    needed = not path.startswith("tests/") or path.startswith("tests/support/")
    _check_scope(tree, found, None, needed, known)
    for node in _definitions(tree):
        if isinstance(node, _FUNCTIONS):
            if needed:
                _check_form(node, found)
            for inner in node.body:
                _check_inner(inner, found, known)
        elif isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog"):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    check_prose(part.value, part.lineno, found)
                    _check_opening(part.value, part.lineno, "the help", found)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            check_prose(node.value.value, node.value.lineno, found)
    for line, comment in _comments(text):
        check_prose(comment, line, found)
    return found


def _check_inner(node: ast.stmt, found: Problems, known: dict[str, list[Class]]) -> None:
    """Check docstrings that functions and classes inside a function happen to have."""
    if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
        _check_summary(node, node.name, found)
        _check_scope(node, found, node, needed=False, known=known)


def _check_scope(
    scope: _Documented, found: Problems, inside: _Documented | None, needed: bool, known: dict[str, list[Class]]
) -> None:
    """Check the docstrings of a module or class, and of all that it defines."""
    if inside is None:
        name = found.path
        if needed and not ast.get_docstring(scope):
            found.add(1, "the module has no docstring")
        _check_summary(scope, name, found)
    for node in scope.body:
        if not isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
            continue
        public = needed and not node.name.startswith("_")
        if not ast.get_docstring(node):
            bases = {_base_name(base) for base in scope.bases} if isinstance(scope, ast.ClassDef) else set()
            if public and not _is_repetition(node) and not inherits_docstring(bases, node.name, known):
                found.add(node.lineno, f"{node.name} has no docstring")
        _check_summary(node, node.name, found)
        if isinstance(node, ast.ClassDef):
            _check_scope(node, found, scope, public, known)


def _is_repetition(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True for a setter of a property, and for a declared overload."""
    marks = [
        i.attr if isinstance(i, ast.Attribute) else i.id
        for i in node.decorator_list
        if isinstance(i, ast.Attribute | ast.Name)
    ]
    return bool({"setter", "deleter", "overload"} & set(marks))


def _check_summary(node: _Documented, name: str, found: Problems) -> None:
    text = ast.get_docstring(node)
    if not text:
        return
    first = node.body[0]
    line = first.lineno
    wraps = isinstance(node, ast.Module) and name.endswith("__init__.py")
    summary = " ".join(text.split("\n\n")[0].split()) if wraps else text.split("\n", 1)[0].rstrip()
    if not summary.endswith("."):
        found.add(line, f"the summary line of {name} does not end with a period")
    _check_opening(summary, line, f"the docstring of {name}", found)
    if _FRAGMENT.match(summary):
        found.add(line, f"the docstring of {name} is a fragment: write a full sentence about the name")


def _check_opening(text: str, line: int, of: str, found: Problems) -> None:
    match = SUMMARY_OPENINGS.match(text)
    if match:
        found.add(line, f'{of} begins with "{match[0]}": write a full sentence about the name')


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of comments; lines of comments that follow each other are one text."""
    start, lines, last = 0, list[str](), -1
    if "#" not in text:
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, own = token.start[0], not token.line[: token.start[1]].strip()
        if lines and not (own and row == last + 1):
            yield start, "\n".join(lines)
            lines = []
        if not lines:
            start = row
        lines.append(token.string.lstrip("#").strip())
        last = row if own else -1
    if lines:
        yield start, "\n".join(lines)


_C_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|/\*(?P<block>.*?)\*/|//(?P<line>[^\n]*)', re.DOTALL)


def check_c(path: str, text: str) -> Problems:
    """Check the comments of one C file."""
    found = Problems(path)
    for match in _C_COMMENT.finditer(text):
        comment = match["block"] or match["line"]
        if comment:
            stripped = re.sub(r"^[ \t]*\*?[ \t]*", "", comment, flags=re.MULTILINE)
            check_prose(stripped, 1 + text.count("\n", 0, match.start()), found)
    return found


_FENCE = re.compile(r"^(\s*)(```|~~~).*?^\s*\2[^\n]*$", re.DOTALL | re.MULTILINE)
_MARKUP = re.compile(r"<!--.*?-->|\]\([^)]*\)", re.DOTALL)
_DOCUMENT_OPENINGS = re.compile(
    r"^(?:\s*(?:[-*+]|\d+\.)\s+|\s*)(?P<words>Of|Whether|Those (?:that|who|which)|One that)\s", re.MULTILINE
)
_OLD_WORDS = re.compile(r"^\|.*\| not used \|\n(?:\|.*\n)*", re.MULTILINE)
"""A table of the glossary: its last column lists words that are not to be used."""

_LIST_MARK = re.compile(r"^(\s*)([-*+>|]|\d+\.)(?=\s)", re.MULTILINE)


def check_shell(path: str, text: str) -> Problems:
    """Check the comments that stand on lines of their own in one shell script; successive lines are one text."""
    found = Problems(path)
    for match in re.finditer(r"(?:^[ \t]*#(?!!).*\n)+", text, re.MULTILINE):
        prose = re.sub(r"^[ \t]*#[ \t-]*", "", match[0], flags=re.MULTILINE)
        check_prose(prose, text.count("\n", 0, match.start()) + 1, found)
    return found


def check_document(path: str, text: str) -> Problems:
    """Check the prose of one Markdown file; code blocks, headings and the words that the glossary replaces are skipped."""
    found = Problems(path)
    prose = _MARKUP.sub(_emptied, _FENCE.sub(_emptied, text))
    prose = re.sub(r"^#.*$", "", prose, flags=re.MULTILINE)
    prose = _OLD_WORDS.sub(lambda match: re.sub(r"[^|\n]*\|$", "|", match[0], flags=re.MULTILINE), prose)
    line = 1
    for paragraph in re.split(r"(\n[ \t]*\n|\n(?=\s*(?:[-*+]|\d+\.)\s))", prose):
        plain = _LIST_MARK.sub(lambda match: " " * len(match[0]), paragraph)
        check_prose(plain.replace("**", "").lstrip(" "), line, found)
        match = _DOCUMENT_OPENINGS.match(paragraph)
        if match:
            found.add(line, f'a paragraph begins with "{match["words"]}": write a full sentence')
        line += paragraph.count("\n")
    return found


def _emptied(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")
