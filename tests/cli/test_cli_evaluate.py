"""`evaluate` runs a grid once, adds what is missing, and `report` shows it again."""

import json

import pytest

from jaxpurify.cli.evaluate import Options, checked_scenario
from jaxpurify.cli.main import main
from jaxpurify.evaluate import presets
from jaxpurify.evaluate.protocol import Protocol
from jaxpurify.records import read_rows
from jaxpurify.train.classifier import Recipe


@pytest.fixture
def small_protocol(monkeypatch):
    """Puts a protocol of seconds in the place of all named ones."""
    options = {"width": 2, "classes": 10, "channels": 1}
    sources = ("digits[:200]", "digits[1500:]", "digits[200:400]")
    small = Protocol("small", *sources, "resnet9", options, Recipe(epochs=1, batch_size=50), None)
    monkeypatch.setattr(presets, "protocol", lambda name: small)


def test_evaluate_and_report(small_protocol, here, capsys):
    grid = ["evaluate", "--protocol", "small", "--attack", "badnets(count=20)", "--out", "runs/grid"]
    assert main([*grid, "--defence", "jpeg(quality=50)", "identity"]) == 0
    rows = read_rows("runs/grid/results.jsonl")
    assert [(row["attack"], row["defence"]) for row in rows] == [
        ("none", "none"),
        ("badnets(count=20)", "none"),
        ("badnets(count=20)", "jpeg(quality=50)"),
        ("badnets(count=20)", "identity"),
    ]
    output = capsys.readouterr().out
    assert "undefended" in output and "rows runs/grid/results.jsonl; report runs/grid/report.html" in output
    assert "jpeg" in (here / "runs/grid/report.html").read_text()

    more = ["--defence", "jpeg(quality=50)", "--defence", "jpeg(quality=20)"]
    assert main([*grid, *more]) == 0
    again = read_rows("runs/grid/results.jsonl")
    assert again[:4] == rows and [row["defence"] for row in again[4:]] == ["jpeg(quality=20)"]
    capsys.readouterr()

    assert main(["report", "runs/grid", "--markdown"]) == 0
    assert "| `badnets(count=20)` |" in capsys.readouterr().out
    assert main(["report", "runs/grid/results.jsonl", "--out", "page.html"]) == 0
    assert "undefended" in capsys.readouterr().out and "<table" in (here / "page.html").read_text()
    assert "page.html exists already" in shown_refusal(["report", "runs/grid", "--out", "page.html"], capsys)


def shown_refusal(arguments, capsys):
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "neither --preset nor --protocol"),
        (("--preset", "absent"), "unknown preset 'absent'; known: demo, cpu-narcissus"),
        (("--protocol", "small", "--attack", "venom"), "'venom'"),
        (("--protocol", "small", "--attack", "badnets(many=3)"), "known: target, count"),
        (("--protocol", "small", "--defence", "jpeg(quality=0)"), "quality=0"),
        (("--protocol", "small", "--defence", "jpeg", "blur"), "blur"),
        (("--protocol", "small", "--defence", "jpeg"), "--defence jpeg without an attack"),
        (("--protocol", "small", "--attack", "badnets(count=9)", "--trigger-scale", "-1"), "trigger_scale=-1.0"),
        (("--protocol", "small", "--seeds", "0"), "seeds 0"),
        (("--protocol", "small", "--seed", "-1"), "seed -1"),
        (("--preset", "demo", "--seed", str(2**32 - 1)), f"seed {2**32 + 1} is out of range"),
        (("--protocol", "small", "--victim-seeds", "0"), "victim_seeds=0; it must be at least 1"),
        (("--protocol", "small", "--training", "odd"), "training='odd'; known: scratch, linear, fine-tune"),
        (("--protocol", "small", "--targets", "0"), "targets=0, surrogates=1; both must be at least 1"),
        (("--protocol", "small", "--surrogate-training", "odd"), "surrogate_training='odd'; known: plain, adversarial"),
        (
            ("--protocol", "small", "--stagger", "full"),
            "stagger='full' and surrogates=1; known: firstn, full, inbetween",
        ),
        (("--protocol", "small", "--victim", "magic"), "unknown network 'magic'; known: "),
        (("--protocol", "small", "--surrogate", "resnet9(depth=3)"), "unexpected keyword argument 'depth'"),
        (("--protocol", "small", "--surrogate-defence", "blur"), "unknown purifier 'blur'"),
    ],
)
def test_grids_that_cannot_run(small_protocol, refused, everything, arguments, complaint):
    assert complaint in refused("evaluate", *arguments, "--out", "runs")
    assert everything() == []


def test_an_unknown_protocol_is_refused(refused, everything):
    assert "unknown protocol 'absent'; known: demo" in refused("evaluate", "--protocol", "absent")
    assert everything() == []


def test_presets_are_grids_of_known_names():
    for preset in presets.PRESETS.values():
        scenario = preset.scenario()
        assert scenario.seeds and scenario.attacks and scenario.defences
        json.dumps(scenario.protocol.config())


def test_a_preset_has_seeds_of_its_own():
    def seeds(**options):
        return checked_scenario(Options(**options)).seeds

    assert seeds(preset="demo") == presets.PRESETS["demo"].seeds != (0,)
    assert seeds(preset="demo", seed=7) == (7, 8, 9)
    assert seeds(preset="demo", seeds=2) == presets.PRESETS["demo"].seeds[:2]
    assert seeds(protocol="demo", attack=(("badnets(count=9)",),)) == (0,)


def test_a_page_never_replaces_the_rows_that_it_shows(here, refused):
    (here / "rows.html").write_text("kept")
    assert "rows.html is read and would be replaced" in refused("report", "rows.html", "--out", "rows.html", "--force")
    (here / "bench.jsonl").write_text('{"row": "resnet9"}\n')
    assert "bench.jsonl must end with .html" in refused("report", "bench.jsonl", "--out", "bench.jsonl", "--force")
    assert (here / "rows.html").read_text() == "kept"
    for form in ((), ("--markdown",)):
        assert "expected a result row" in refused("report", "bench.jsonl", *form)


def test_a_report_needs_rows(here, refused):
    assert "no results file" in refused("report", "absent.jsonl")
    (here / "empty.jsonl").write_text("")
    assert "no rows" in refused("report", "empty.jsonl")
