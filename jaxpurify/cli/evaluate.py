"""`jaxpurify evaluate`: a grid of attacks, defences and seeds, as rows, a table and a page."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxpurify.cli.options import MOST_SEED, check_seed, read_options
from jaxpurify.cli.progress import progress_display

Specs = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class Options:
    """Poison, purify, train and measure: one row for every attack, defence and seed, and the controls.

    Rows that are in OUT/results.jsonl already are not run again, so the command can be stopped and continued.

    Attributes:
      out: folder of results.jsonl, report.html and everything that is kept in between; default runs/NAME of the
        preset or protocol.
      preset: a grid that has a name; the flags below change parts of it.
      protocol: data, victim and its training: demo, cpu, cpu-small or paper.
      attack: attack specs, e.g. "narcissus(epsilon=16/255, count=500)"; can be given several times.
      defence: purifier specs, e.g. "jpeg(quality=50)" puregen-ebm; can be given several times.
      seeds: how many seeds; each is one poison and one victim.
      seed: the first of them.
      trigger_scale: strength of additive triggers at test, times that in training.
    """

    out: Path | None = None
    preset: str | None = None
    protocol: str | None = None
    attack: Specs = ()
    defence: Specs = ()
    seeds: int | None = None
    seed: int = 0
    trigger_scale: float | None = None


def main(arguments: list[str]) -> int | None:
    """Runs the command; names and options of the whole grid are checked before any of it runs."""
    options = read_options(Options, arguments, command="evaluate")
    if options.preset is None and options.protocol is None:
        raise ValueError("neither --preset nor --protocol is given; `jaxpurify list` shows the known ones")
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"seeds {options.seeds}; at least 1 is needed")
    check_seed(options.seed)
    check_seed(options.seed + (options.seeds or 1) - 1)

    from jaxpurify.attack.catalogue import named_attack
    from jaxpurify.cli.craft import check_attack
    from jaxpurify.cli.report import print_table
    from jaxpurify.evaluate.presets import Preset, preset
    from jaxpurify.evaluate.purifiers import make_purifier
    from jaxpurify.evaluate.report import demo_report
    from jaxpurify.evaluate.scenario import NONE, run_scenario
    from jaxpurify.evaluate.specs import parse_spec
    from jaxpurify.records import read_rows
