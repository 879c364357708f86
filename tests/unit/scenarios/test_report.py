"""The drill's report."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.storage.azurite_files import find_node
from siterig.azure_emu.vault.model.job_parts import JobError
from siterig.azure_emu.vault.model.resources import Job, Task
from siterig.blockfs.core.errors import RigError
from siterig.scenarios.contracts.results import Check, DrillResult, Host, Measures, RpoSample, Setup, TimelineEvent
from siterig.scenarios.report import charts
from siterig.scenarios.report.report import make_report_folder, print_summary, verdict, write_report
from tests.support.other_user import file_of_other_user, folder_of_other_user, link_of_other_user, needs_root
from tests.support.screens import TextScreen

EVIL = "<script>alert('x')</script> & \"q\""


def result(*, failed: bool = False, error: str | None = None) -> DrillResult:
    stamp = "2026-11-21T22:00:00Z"
    task = Task(
        name="FailoverTask", friendlyName="x", state="Succeeded", stateDescription=None, startTime=stamp, endTime=stamp
    )
    job = Job(
        name="j1",
        scenarioName="UnplannedFailover",
        friendlyName="Failover",
        state="Failed",
        stateDescription=None,
        targetObjectName=EVIL,
        vm=EVIL,
        startTime=stamp,
        endTime=stamp,
        tasks=[task],
        errors=[JobError(code="Bad", message=EVIL)],
    )
    return DrillResult(
        ok=not failed and error is None,
        error=error,
        started="2026-11-21T22:00:00+00:00",
        duration_s=60.0,
        vm="web01",
        interval_s=5.0,
        steps=["source", "protect", "loss", "failback"],
        checks=[
            Check(step="source", name="disks", ok=True, evidence="two"),
            Check(step="loss", name="ledger", ok=not failed, evidence=EVIL),
        ],
        timeline=[
            TimelineEvent(at_s=0.0, step="source", text="begin"),
            TimelineEvent(at_s=20.0, step="protect", text=EVIL),
            TimelineEvent(at_s=40.0, step="loss", text="THE SITE IS LOST", severity="bad"),
        ],
        rpo=[RpoSample(at_s=float(i), rpo_s=None if i < 3 else i % 6) for i in range(50)],
        tested=Setup(
            version="0.1.0",
            commit=None,
            python="3.11.7",
            azurite="3.37.0",
            command_line=["siterig", "drill", EVIL],
            os_bytes=1 << 30,
            data_bytes=3 << 29,
            corpus_bytes=200 << 20,
            host=Host(system="Debian", kernel="6.1", cpus=2, cpu_model=EVIL, memory_bytes=8 << 30, file_system="ext4"),
        ),
        measures=Measures(rpo_s=2.25, rpo_transactions=7, rto_s=8.0),
        jobs=[job],
    )


def page(folder: Path, made: DrillResult) -> str:
    write_report(folder, made)
    return (folder / "report.html").read_text()


def test_json_reads_back_as_the_same_result(tmp_path: Path) -> None:
    made = result()
    assert write_report(tmp_path / "new" / "folder", made) == [
        tmp_path / "new" / "folder" / "report.json",
        tmp_path / "new" / "folder" / "report.html",
    ]
    text = (tmp_path / "new" / "folder" / "report.json").read_text()
    assert DrillResult.model_validate_json(text) == made
    assert json.loads(text)["schema_version"] == 1


def test_html_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    links: list[str] = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {"link", "img", "iframe", "object"}
            links.extend(value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "data"})

    text = page(tmp_path, result())
    Loads().feed(text)
    assert links == []
    assert re.findall(r"url\((?!#)|@import|sourceMappingURL", text) == []
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in text, "nor may a script load"


def test_html_escapes_text_from_outside(tmp_path: Path) -> None:
    text = page(tmp_path, result())
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;q&#34;" in text
    assert "\\u003cscript\\u003ealert" in text, "in the data of the charts"


def chart_data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def test_the_charts_have_the_data_of_the_result(tmp_path: Path) -> None:
    data = chart_data_of(page(tmp_path, result()))
    assert (data["end_s"], data["interval_s"], data["lost_at_s"]) == (60.0, 5.0, 40.0)
    assert data["steps"] == [
        {"name": "source", "begin_s": 0.0, "end_s": 20.0},
        {"name": "protect", "begin_s": 20.0, "end_s": 40.0},
        {"name": "loss", "begin_s": 40.0, "end_s": 60.0},
    ], "a step that was not reached has no bar"
    assert [event["at_s"] for event in data["events"]] == [0.0, 20.0, 40.0]
    assert [sample["rpo_s"] for sample in data["rpo"][:5]] == [None, None, None, 3.0, 4.0]


@pytest.mark.slow
def test_the_scripts_of_the_page_draw_both_charts(tmp_path: Path) -> None:
    """Runs report.js on the page's data, with a document and a Chart that only record."""
    text = page(tmp_path, result())
    shared, own = ((Path(charts.__file__).parent / name).read_text() for name in ("timelines.js", "report.js"))
    assert shared in text and own in text
    (tmp_path / "run.js").write_text(
        f"""
const data = {json.dumps(json.dumps(chart_data_of(text)))};
const said = {{}}, shown = [];
const closest = () => ({{ querySelector: () => said }});
const elements = {{}};
const element = (id) => elements[id] ??= {{ id, textContent: data, parentElement: {{ style: {{}} }}, closest }};
global.innerWidth = 1000;
global.addEventListener = () => undefined;
global.document = {{ documentElement: {{}}, getElementById: element, querySelectorAll: () => [] }};
global.getComputedStyle = () => ({{ getPropertyValue: (name) => name }});
global.matchMedia = () => ({{ addEventListener: () => undefined }});
const drawn = [];
global.Chart = class {{
  constructor(where, chart) {{ drawn.push([where.id, chart]); }}
  scales = {{ x: {{ min: 0, max: 100 }} }};
  tooltip = {{ setActiveElements: () => undefined }};
  setActiveElements(active) {{ shown.push(active[0].index); }}
  getDatasetMeta() {{ return {{ data: [0, 1, 2].map(() => ({{ getCenterPoint: () => ({{}}) }})) }}; }}
  update() {{}}
}};
{shared}
{own}
const press = (key) => elements.timeline.onkeydown({{ key, preventDefault() {{}} }});
["ArrowRight", "ArrowRight", "ArrowLeft", "End"].forEach(press);
const labels = [];
const [[, timeline], [, rpo]] = drawn;
const callbacks = timeline.options.plugins.tooltip.callbacks;
for (const set of timeline.data.datasets) for (const raw of set.data) labels.push(callbacks.label({{ raw }}));
console.log(JSON.stringify({{ ids: drawn.map(([id]) => id), labels, lines: rpo.data.datasets.map((set) => set.label),
  shown, said: said.textContent, styles: timeline.data.datasets[0].pointStyle }}));
"""
    )
    done = subprocess.run([find_node(), tmp_path / "run.js"], capture_output=True, text=True, check=True)
    drawn = json.loads(done.stdout)
    assert drawn["ids"] == ["timeline", "rpo"]
    assert drawn["labels"][2:] == [["THE SITE IS LOST"], *(f"{at}.0 s to {at + 20}.0 s: 20.0 s" for at in (0, 20, 40))]
    assert drawn["lines"] == ["RPO", "replication interval", "site lost"]
    assert (drawn["shown"], drawn["said"]) == ([0, 1, 0, 2], "loss, 40.0 s: THE SITE IS LOST"), (
        "the keys step through points"
    )
    assert drawn["styles"] == ["circle", "circle", "rectRot"], "shapes differ, not colours alone"


def test_a_page_without_the_npm_packages_has_tables_of_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(charts.chart_scripts()) == 5
    monkeypatch.setattr("siterig.scenarios.report.report.chart_scripts", lambda: charts.chart_scripts([tmp_path]))
    text = page(tmp_path, result())
    assert "<script" not in text
    assert text.count("No chart: ") == 2
    assert "THE SITE IS LOST" in text


@pytest.mark.slow
def test_the_same_result_gives_the_same_page(tmp_path: Path) -> None:
    assert page(tmp_path / "a", result()) == page(tmp_path / "b", result())


@pytest.mark.slow
def test_a_drill_that_ended_before_its_first_event_still_has_a_report(tmp_path: Path) -> None:
    empty = result(error="DiskFull: no space").model_copy(update={"timeline": [], "rpo": [], "checks": [], "jobs": []})
    assert "The drill did not come to its end: DiskFull: no space" in page(tmp_path, empty)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (result(), "All 2 checks held"),
        (result(failed=True), "1 of 2 checks failed"),
        (result(error="VmBusy: x"), "The drill did not come to its end: VmBusy: x"),
    ],
)
def test_the_verdict_is_one_sentence(made: DrillResult, sentence: str) -> None:
    assert verdict(made) == sentence


def test_the_page_names_the_tested_version(tmp_path: Path) -> None:
    text = page(tmp_path, result())
    for shown in (
        "0.1.0, commit unknown",
        "siterig drill &#39;",
        "os 1 GiB, data 1.5 GiB, with files of 0.195 GiB",
        "3.37.0",
    ):
        assert shown in text
    assert "Debian, Linux 6.1" in text


def test_a_name_with_control_characters_is_escaped_in_page_and_json(tmp_path: Path) -> None:
    made = result().model_copy(update={"vm": "a\u202eb\x1b\udcff"})
    assert r"a\u202eb\x1b\xff" in page(tmp_path, made)
    assert json.loads((tmp_path / "report.json").read_text())["vm"] == "a\u202eb\x1b\\xff"


def test_the_summary_shows_failed_checks_with_evidence_and_the_figures() -> None:
    screen = TextScreen()
    print_summary(screen, result(failed=True))
    text = "\n".join(screen.lines)
    assert f"✗ loss: ledger - {EVIL}" in text
    assert "RPO 2.2 s, transactions lost 7, RTO 8.0 s, failback -, whole drill 60.0 s" in text
    assert "1 of 2 checks failed" in text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for refuse in (lambda folder: write_report(folder, result()), make_report_folder):
        with pytest.raises(RigError) as caught:
            refuse(tmp_path / "file" / "sub")
        said = f"report folder {tmp_path / 'file' / 'sub'} cannot be written: Not a directory ({tmp_path / 'file'})"
        assert (caught.value.code, caught.value.message) == ("ReportUnwritable", said)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_no_link_and_no_file_of_another_user_is_written_through(tmp_path: Path, name: str) -> None:
    theirs = folder_of_other_user(tmp_path / "theirs")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for make in (lambda path: link_of_other_user(path, victim), lambda path: file_of_other_user(path, b"theirs")):
        make(theirs / name)
        for refuse in (lambda folder: write_report(folder, result()), make_report_folder):
            with pytest.raises(RigError) as caught:
                refuse(theirs)
            assert caught.value.code == "ForeignFile"
        (theirs / name).unlink()
    assert victim.read_text() == "precious"
    link_of_other_user(theirs / "sub", tmp_path)
    with pytest.raises(RigError, match="sub: is a symbolic link of"):
        make_report_folder(theirs / "sub")
    write_report(theirs, result())
    assert {path.stat().st_mode & 0o777 for path in theirs.glob("report.*")} == {0o644}
    assert sorted(path.name for path in theirs.iterdir()) == ["report.html", "report.json", "sub"]
