"""Tests of the static site of the documents: it builds without a warning and loads nothing from the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repo.documents import DOCS, pages
from tests.support.site_hook import MERMAID, ROOT

pytestmark = pytest.mark.system
LOADED = re.compile(r"<(?:script|img|iframe)[^>]* src=\"([^\"]*)\"|<link[^>]* href=\"([^\"]*)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    names = {path.relative_to(DOCS).as_posix() for path in pages()}
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    assert found == {page.replace("README.md", "index.md").replace(".md", ".html") for page in names}


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        for found in LOADED.findall(path.read_text()):
            assert "//" not in "".join(found), path


def test_tables_and_diagrams_are_drawn(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", path.read_text(), flags=re.S)
        assert not re.search(r"^\s*(<p>)?\| ", text, re.M), f"{path}: a table was not recognised"
        assert not re.search(r"<p>[^<]*\n[-*] ", text), f"{path}: a list was not recognised"
    assert (site / "javascripts" / "mermaid.tiny.js").read_bytes() == MERMAID.read_bytes()
    assert '<div class="mermaid">' in (site / "explanation" / "architecture.html").read_text()
