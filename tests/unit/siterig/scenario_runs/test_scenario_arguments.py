"""Arguments of ``siterig scenario run`` and of other commands with a seed: what cannot succeed is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from siterig.blockfs.core.fault_decisions import SEED_MAX
from siterig.cli.app import program


@pytest.mark.parametrize("option", ["--junit", "--html"])
@pytest.mark.parametrize("place", ["none/out", "file/out"])
def test_a_report_that_cannot_be_written_is_refused_before_the_first_run(tmp_path: Path, option: str, place: str) -> None:
    (tmp_path / "file").write_text("")
    words = ["scenario", "run", "resync-by-hand", "--dir", str(tmp_path / "rig"), option, str(tmp_path / place)]
    refused = CliRunner().invoke(program(["scenario"]), words)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert f"report folder {tmp_path / place.partition('/')[0]} cannot be written: " in refused.stderr
    assert "(ReportUnwritable)" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "words",
    [
        ("scenario", "run", "drill"),
        ("mount", "disk.img", "--mnt", "m"),
        ("up",),
        ("fault", "add", "disk", "error=EIO"),
        ("power-loss", "web01"),
        ("site", "lose", "--power"),
    ],
    ids=" ".join,
)
def test_a_seed_that_no_rule_can_have_is_a_wrong_argument(words: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(program([words[0]]), [*words, "--seed", str(SEED_MAX + 1)])
    assert refused.exit_code == 2
    assert f"less than or equal to {SEED_MAX}" in refused.stderr
