"""`demo` runs its grid, draws the page, and continues where it stopped."""

import pytest

from jaxpurify.cli.main import main
from jaxpurify.evaluate import presets
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.records import read_rows
from tests.evaluate.flat import Flat, tiny_protocol

ATTACK = "pattern(count=20, epsilon=0.3)"


@pytest.fixture
def tiny_demo(monkeypatch):
    """Puts a demo of seconds in the place of the real one."""
    monkeypatch.setitem(NETWORKS, "flat", Flat)
    monkeypatch.setattr(presets, "protocol", {"tiny": tiny_protocol()}.get)
    monkeypatch.setitem(presets.PRESETS, "demo", presets.Preset("tiny", (ATTACK,), ("jpeg(quality=25)",), (5, 6)))


def test_the_demo_writes_rows_and_a_page_and_runs_once(tiny_demo, here, capsys):
    assert main(["demo", "--out", "demo", "--seeds", "1"]) == 0
    cells = [(row["attack"], row["defence"], row["seed"]) for row in read_rows("demo/results.jsonl")]
    assert cells == [("none", "none", 1), (ATTACK, "none", 1), (ATTACK, "jpeg(quality=25)", 1)]
    output, page = capsys.readouterr().out, (here / "demo/report.html").read_text()
    assert "undefended" in output and "rows: demo/results.jsonl · report: demo/report.html" in output
    assert "poisons before and after jpeg(quality=25)" in page and "AUROC of poisoned above clean" in page
    written = (here / "demo/results.jsonl").read_bytes()
    (here / "demo/report.html").unlink()
    assert main(["demo", "--out", "demo", "--seeds", "1"]) == 0
    assert (here / "demo/results.jsonl").read_bytes() == written
    assert (here / "demo/report.html").exists()


def test_a_demo_needs_a_seed(refused, everything):
    assert "seeds=0; at least 1 is needed" in refused("demo", "--seeds", "0")
    assert everything() == []
