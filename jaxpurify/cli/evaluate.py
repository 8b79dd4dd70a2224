"""`jaxpurify evaluate`: a grid of attacks, defences and seeds, as rows, a table and a page."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxpurify.cli.options import check_seed, read_options
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
      protocol: data, victim and its training, such as demo, cpu, cpu-small or paper; `jaxpurify list` shows all.
      attack: attack specs, e.g. "narcissus(epsilon=16/255, count=500)"; can be given several times.
      defence: purifier specs, e.g. "jpeg(quality=50)" puregen-ebm; can be given several times.
      seeds: how many seeds; each is one poison and its victims. Default as the preset has them, else 1.
      seed: the first of them; default as the preset has it, else 0.
      victim_seeds: victims trained on each poisoned set, each a row of its own.
      trigger_scale: strength of additive triggers at test, times that in training.
      training: of victims: scratch, linear (a new last layer on the attacker's features) or fine-tune.
      targets: images of one class that a targeted attack is after.
      surrogates: models of the attacker; more than one are an ensemble.
      victim: network of the victims if not the protocol's, e.g. "resnet9(width=8)"; `jaxpurify list` shows them.
      surrogate: network of the attacker's models, likewise. Where it is not that of the victims, `jaxpurify report`
        prints the transfer matrix.
      surrogate_defence: purifier spec of an attacker who trains the surrogates on public images behind it.
      purified_controls: also show triggers and targets to victims trained on the clean set behind every defence.
      surrogate_training: plain, or adversarial: on adversarial examples, as published for clean_label_backdoor.
      stagger: stops the training of several surrogates after different numbers of epochs, as published for metapoison:
        firstn (0, 1, 2 …), full (evenly from 0 to all) or inbetween (evenly, without either).
    """

    out: Path | None = None
    preset: str | None = None
    protocol: str | None = None
    attack: Specs = ()
    defence: Specs = ()
    seeds: int | None = None
    seed: int | None = None
    victim_seeds: int = 1
    trigger_scale: float | None = None
    training: str = "scratch"
    targets: int = 1
    surrogates: int = 1
    victim: str = ""
    surrogate: str = ""
    surrogate_defence: str = ""
    surrogate_training: str = "plain"
    stagger: str = ""
    purified_controls: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command; names and options of the whole grid are checked before any of it runs."""
    options = read_options(Options, arguments, command="evaluate")
    if options.preset is None and options.protocol is None:
        raise ValueError("neither --preset nor --protocol is given; `jaxpurify list` shows the known ones")
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"seeds {options.seeds}; at least 1 is needed")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is a file; rows, page and models go to a folder")

    from jaxpurify.cli.report import print_table
    from jaxpurify.evaluate.exhibits import exhibits
    from jaxpurify.evaluate.grid import run_scenario
    from jaxpurify.evaluate.report import demo_report
    from jaxpurify.records import read_rows

    scenario = checked_scenario(options)
    directory = options.out or Path("runs") / (options.preset or scenario.protocol.name)
    with progress_display() as progress:
        results = run_scenario(scenario, directory, progress=progress)
        grids, histograms = exhibits(scenario, directory)
    rows = read_rows(results)
    print_table(rows)
    page = demo_report(
        directory / "report.html",
        rows,
        title=f"Results of {options.preset or scenario.protocol.name}",
        grids=grids,
        histograms=histograms,
        configuration=scenario.config(),
    )
    print(f"rows {results}; report {page}")
    return None


def checked_scenario(options: Options) -> Any:
    """The grid that the options describe.

    Raises:
      ValueError: unknown names, or options that an attack or a purifier does not take.
    """
    from jaxpurify.data.sources import load_source
    from jaxpurify.evaluate.presets import Preset, named_preset
    from jaxpurify.evaluate.purifiers import make_purifier
    from jaxpurify.evaluate.row import NONE

    chosen = Preset(options.protocol or "", (), ()) if options.preset is None else named_preset(options.preset)
    changed: dict[str, Any] = {
        "protocol": options.protocol,
        "attacks": tuple(itertools.chain(*options.attack)) or None,
        "defences": tuple(itertools.chain(*options.defence)) or None,
        "seeds": _seeds(options, chosen.seeds),
        "trigger_scale": options.trigger_scale,
    }
    chosen = dataclasses.replace(chosen, **{name: value for name, value in changed.items() if value is not None})
    scenario = dataclasses.replace(
        chosen.scenario(),
        training=options.training,
        targets=options.targets,
        surrogates=options.surrogates,
        victim_network=options.victim,
        surrogate_network=options.surrogate,
        surrogate_defence=options.surrogate_defence,
        surrogate_training=options.surrogate_training,
        stagger=options.stagger,
        victim_seeds=options.victim_seeds,
        purified_controls=options.purified_controls,
    )
    defences = [spec for spec in scenario.defences if spec != NONE]
    if defences:
        shape = load_source(scenario.protocol.train).images.shape[1:]
        for spec in defences:
            make_purifier(spec, shape)
    if defences and not scenario.attacks:
        raise ValueError(f"--defence {defences[0]} without an attack; --attack names what it defends against")
    return scenario


def _seeds(options: Options, usual: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds that the options name, of which the others are those of the preset."""
    first = next(iter(usual), 0) if options.seed is None else options.seed
    seeds = tuple(range(first, first + (options.seeds or len(usual))))
    check_seed(first)
    check_seed(max(seeds, default=first))
    return usual if options.seed is None and options.seeds is None else seeds
