"""`jaxpurify report purifier`: what a purifier does to the poisons of one attack, as one page."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

from jaxpurify.cli.options import Source, check_output, check_seed, read_options
from jaxpurify.cli.progress import progress_display


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure a purifier on the poisons of one attack: energies, crossing plot, PSNR, perturbation survival.

    Helps to choose steps before victims are trained. It purifies COUNT images twice for each number of steps.

    Attributes:
      source: the clean data set that was poisoned.
      poison: the .npz file that `jaxpurify craft` wrote for it.
      purifier: a preset or spec, as for `jaxpurify purify`; of a filter, what it applies to the chosen images.
      out: the HTML page.
      count: how many of the poisons are measured, the first ones that differ from their clean image.
      steps: numbers of steps for the crossing plot; default a quarter to one and a half of the purifier's own.
      energy: weights of the energy, if not the purifier's own or the bundled one for the image size.
      size: stretch every image to this height and width first.
      seed: of all random numbers.
      force: replace OUT if it exists.
    """

    source: Source
    poison: Path
    purifier: str
    out: Path
    count: int = 64
    steps: tuple[int, ...] = ()
    energy: str | None = None
    size: int | None = None
    seed: int = 0
    force: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    options = read_options(Options, arguments, command="report purifier")
    check_seed(options.seed)
    check_output(options.out, force=options.force, source=options.source, suffix=".html", reads=(options.poison,))
    if options.count < 1:
        raise ValueError(f"count {options.count}; at least 1 image is needed")
    if any(number < 1 for number in options.steps):
        raise ValueError(f"steps {_steps(options)}; all of them must be at least 1")

    import jax

    from jaxpurify.evaluate.effect import effect
    from jaxpurify.evaluate.effect_report import effect_report
    from jaxpurify.evaluate.purifiers import make_purifier
    from jaxpurify.purify.filter import TopEnergy

    pair, index, poison = _poisoned(options)
    shape = pair[0].shape[1:]
    whole = make_purifier(options.purifier, shape)
    energy = _energy(options, whole, shape)
    _check_steps(options, whole)
    purifier = whole.purifier if isinstance(whole, TopEnergy) else whole
    start, key = time.perf_counter(), jax.random.key(options.seed)
    with progress_display() as progress:
        shown = functools.partial(progress, "purify")
        measured = effect(purifier, *pair, key=key, energy=energy, index=index, progress=shown)
        crossings = _crossings(options, purifier, pair, key, index, progress)
    settings = {
        "purifier": options.purifier,
        "source": options.source,
        "poison": str(options.poison),
        "attack": poison.how,
        "images": f"{len(index):,} of {len(poison):,} poisons",
        "seed": options.seed,
    }
    written = effect_report(
        options.out,
        measured,
        crossings,
        purifier=options.purifier,
        settings=settings,
        seconds=time.perf_counter() - start,
        chosen=whole is not purifier,
    )
    print(_line(measured, crossings, written))
    return None


def _steps(options: Options) -> str:
    return " ".join(map(str, options.steps))


def _poisoned(options: Options) -> tuple[tuple[Any, Any], Any, Any]:
    """The first COUNT clean images that the poison changes with what it makes of them, their positions, the poison."""
    import jax

    from jaxpurify.data.poison import poison_dataset
    from jaxpurify.data.sources import load_source
    from jaxpurify.evaluate.stored_poison import stored

    dataset = load_source(options.source, size=options.size)
    poison = stored(dataset.images, dataset.labels, jax.random.key(0), path=str(options.poison), format="npz")
    poisoned = poison_dataset(dataset, poison).images[poison.index]
    clean = dataset.images[poison.index]
    rows = (clean != poisoned).any((1, 2, 3)).nonzero()[0][: options.count]
    if not len(rows):
        raise ValueError(f"no poison of {options.poison} differs from its image in {options.source}; is it of another?")
    return (clean[rows], poisoned[rows]), poison.index[rows], poison


def _check_steps(options: Options, purifier: Any) -> None:
    from jaxpurify.evaluate.crossing import parts

    if options.steps and not parts(purifier):
        raise ValueError(f"--steps {_steps(options)}; {options.purifier} has no steps to choose")
    for part in parts(purifier):
        if options.steps and not part.possible(options.steps):
            raise ValueError(f"--steps {_steps(options)}; {part.name} are at most {part.most}")


def _crossings(
    options: Options, purifier: Any, pair: tuple[Any, Any], key: Any, index: Any, progress: Callable[..., None]
) -> dict[str, Any]:
    """Of every part of the purifier that has steps: its own number of them, and the distances over others."""
    from jaxpurify.evaluate.crossing import crossing, parts

    crossings = {}
    for number, part in enumerate(parts(purifier)):
        name = part.name if part.name not in crossings else f"{part.name}, part {number + 1}"
        steps = part.possible(options.steps) if options.steps else part.grid()
        if steps:  # none of a chain of no steps, say
            shown = functools.partial(progress, f"crossing, {name}")
            crossings[name] = (part.own, crossing(part.at, *pair, steps, key=key, index=index, progress=shown))
    return crossings


def _energy(options: Options, purifier: Any, shape: tuple[int, ...]) -> Any:
    """The energy that the options name, the purifier's own, the bundled one, or None."""
    from jaxpurify.evaluate.purifiers import energy_for, find_energy
    from jaxpurify.weights.catalogue import BUNDLED

    if options.energy is not None:
        return energy_for(shape, options.energy)
    own = find_energy(purifier)
    bundled = any(known == ("energy", shape) for known in BUNDLED.values())
    return energy_for(shape) if own is None and bundled else own


def _line(measured: Any, crossings: dict[str, Any], written: Path) -> str:
    import numpy as np

    words = []
    if measured.auroc is not None:
        words.append(f"AUROC {measured.auroc:.3f}, after purification {measured.auroc_purified:.3f}")
    words.append(f"median survival {np.median(measured.survival):.2f}")
    for name, (_, found) in crossings.items():
        words.append(f"crossing {'not reached' if found.point is None else f'at {found.point:.0f} {name}'}")
    return f"{'; '.join(words)}; {written}"
