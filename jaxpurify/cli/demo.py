"""`jaxpurify demo`: the main job on scanned digits, from poison to report."""

import dataclasses
from pathlib import Path
import time

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Poisons scanned digits, trains victims, purifies, trains again, and reports."""

    out: Path = Path("runs/demo")
    """Where results.jsonl and report.html go; a stopped demo continues here."""
    seeds: int = 3
    """Poisons and victims for each row of the table."""


def main(arguments: list[str]) -> int:
    """Runs the demo and prints its table."""
    options = tyro.cli(Options, prog="jaxpurify demo", args=arguments)
    if options.seeds < 1:
        raise ValueError(f"seeds={options.seeds}; at least 1 is needed")

    from jaxpurify.cli.progress import progress_display
    from jaxpurify.cli.report import print_table
    from jaxpurify.evaluate.exhibits import exhibits
    from jaxpurify.evaluate.grid import run_scenario
    from jaxpurify.evaluate.presets import preset
    from jaxpurify.evaluate.report import demo_report
    from jaxpurify.records import read_rows

    start = time.perf_counter()
    scenario = preset("demo", seeds=tuple(range(1, 1 + options.seeds)))
    print("Scanned digits: two attacks, each against four defences; generative models never saw the training set.")
    with progress_display() as progress:
        results = run_scenario(scenario, options.out, progress=progress)
        progress("drawing the report", 0, 1)
        grids, histograms = exhibits(scenario, options.out)
        rows = read_rows(results)
        notes = (
            "A trigger hidden in a few relabelled digits makes a classifier answer what the attacker wants; class-wise "
            "noise on all digits makes it useless on clean ones. Purification moves the training images back "
            "towards natural ones before training.",
            "The trigger attack changes the labels of the poisoned images (optimised triggers that keep labels did "
            "not succeed on 8 x 8 pixels). Attackers do not know the defence.",
        )
        report = options.out / "report.html"
        demo_report(
            report,
            rows,
            title="jaxpurify demo: scanned digits",
            notes=notes,
            grids=grids,
            histograms=histograms,
            configuration=scenario.config(),
        )
        progress("drawing the report", 1, 1)
    print_table(rows)
    print(f"{time.perf_counter() - start:.0f} s · rows: {results} · report: {report}")
    return 0
