"""`jaxpurify purify`: cleans a data set, keeps its order, names and labels, and says what changed."""

import contextlib
import dataclasses
from pathlib import Path
import shutil
import time
from typing import Any

from jaxpurify.cli.options import Source, check_output, check_place, check_seed, check_space, read_options, sibling
from jaxpurify.cli.progress import Report, progress_display

# What the dataset driver keeps in its working folder; anything else in it belongs to somebody else.
# The last one says that all images are finished, and that OUT and its report, where they exist, are this command's own.
SAVING = "saving"
WORKING_FILES = {"images.npy", "finished.npy", "fingerprint.json", "fingerprint.tmp", SAVING}
ENERGY_PART = 2000


@dataclasses.dataclass(frozen=True)
class Options:
    """Clean a data set with a purifier; order, names, labels and length stay as they are.

    Killed or interrupted, the same command continues where it stopped (from OUT.partial).

    Attributes:
      source: digits, tfds:NAME/SPLIT, folder:PATH, npz:PATH, cinic10:PATH/SPLIT or tiny-imagenet:PATH/SPLIT,
        each with an optional slice such as [:1000].
      out: the folder or .npz file to write, of the same kind as the source.
      purifier: a preset, or purifiers joined by |, e.g. "langevin(steps=150)|diffusion(timestep=75)";
        `jaxpurify list` shows all.
      size: stretch every image to this height and width first.
      batch_size: images in flight; the result does not depend on it.
      seed: of all random numbers.
      force: replace OUT and the report if they exist.
      report: the HTML page of what changed; default OUT.html.
    """

    source: Source
    out: Path
    purifier: str
    size: int | None = None
    batch_size: int = 128
    seed: int = 0
    force: bool = False
    report: Path | None = None


def main(arguments: list[str]) -> int | None:
    """Runs the command; everything that can be wrong with the request is found before any work is done."""
    options = read_options(Options, arguments, command="purify")
    report = sibling(options.out, ".html") if options.report is None else options.report
    partial = sibling(options.out, ".partial")
    if (partial / SAVING).is_file():
        options = dataclasses.replace(options, force=True)
    _check_places(options, report, partial)

    from jaxpurify.data.sources import check_save, load_source
    from jaxpurify.evaluate.purifiers import find_energy, make_purifier
    from jaxpurify.evaluate.report import changes, purify_report

    dataset = load_source(options.source, size=options.size)
    check_save(dataset, options.out, force=options.force)
    purifier = make_purifier(options.purifier, dataset.images.shape[1:])
    finished_before = _finished(partial)
    if not finished_before:
        # The working folder and, at worst, an incompressible result.
        check_space(options.out, 2 * dataset.images.nbytes)

    with progress_display(unit="images") as progress:
        start = time.perf_counter()
        images = _purified(options, purifier, dataset.images, partial, progress)
        seconds = time.perf_counter() - start
        if (images == dataset.images).all() and not _is_identity(purifier):
            shutil.rmtree(partial)
            raise ValueError(f"{options.purifier} changed no pixel of {options.source}; nothing was written")
        energy = find_energy(purifier)
        before = None if energy is None else _energies(energy, dataset.images, "energies before", progress)
        after = None if energy is None else _energies(energy, images, "energies after", progress)

    (partial / SAVING).touch()
    written = _saved(dataset.replace_images(images), options, partial)
    try:
        purify_report(
            report,
            dataset,
            images,
            purifier=options.purifier,
            energies_before=before,
            energies_after=after,
            seconds=None if finished_before else seconds,
        )
    except OSError as error:
        shutil.rmtree(partial)
        raise OSError(f"{options.out} is complete, but its report {report} could not be written ({error})") from error
    shutil.rmtree(partial)
    l2, linf = changes(dataset.images, images)
    count = len(dataset) - finished_before
    where = f"{written} with TFDS_DATA_DIR={options.out}" if written.startswith("tfds:") else written
    earlier = f" ({finished_before:,} more in an earlier run)" if finished_before else ""
    print(
        f"purified {count:,} images{earlier} in {seconds:.1f} s ({count / seconds:.1f} images/s); "
        f"mean change L2 {l2.mean():.3g}, L∞ {linf.mean():.3g}/255; {where}; report {report}"
    )
    return None


def _energies(energy: Any, images: Any, what: str, progress: Report) -> Any:
    """The energy of every stored image, a part after the other so that progress is seen."""
    import numpy as np

    from jaxpurify.purify.filter import energies

    values = np.zeros(len(images), np.float32)
    for start in range(0, len(images), ENERGY_PART):
        rows = slice(start, start + ENERGY_PART)
        values[rows] = energies(energy, images[rows])
        progress(what, min(start + ENERGY_PART, len(images)), len(images))
    return values


def _saved(dataset: Any, options: Options, partial: Path) -> str:
    """Writes the purified data set; on a full disk says that the finished work is kept."""
    from jaxpurify.data.sources import save_dataset

    try:
        return save_dataset(dataset, options.out, force=options.force)
    except OSError as error:
        raise OSError(
            f"{options.out} could not be written ({error}); what was purified is kept in {partial}: make room and run "
            "the same command again"
        ) from error


def _check_places(options: Options, report: Path, partial: Path) -> None:
    check_seed(options.seed)
    if options.batch_size < 1:
        raise ValueError(f"batch-size {options.batch_size}; it must be at least 1")
    check_place(options.out, force=options.force, source=options.source)
    check_output(report, force=options.force, source=options.source)
    if len({path.resolve() for path in (options.out, report, partial)}) < 3:
        raise ValueError(f"the report {report} would replace {options.out}; choose another place")
    if partial.is_file() or (partial.is_dir() and {path.name for path in partial.iterdir()} - WORKING_FILES):
        raise ValueError(f"{partial} is in the way: it is needed for unfinished work and holds something else")


def _finished(partial: Path) -> int:
    """How many images an earlier run of this command finished."""
    import numpy as np

    if not (partial / "fingerprint.json").is_file():
        return 0
    return int(np.load(partial / "finished.npy").sum())


def _purified(options: Options, purifier: Any, images: Any, partial: Path, progress: Report) -> Any:
    """The purified images; the working folder stays only where it holds work that is worth continuing."""
    import jax

    from jaxpurify.purify.dataset import purify

    try:
        return purify(
            purifier,
            images,
            key=jax.random.key(options.seed),
            batch_size=options.batch_size,
            directory=partial,
            progress=lambda finished, total: progress("purify", finished, total),
        )
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            if not _finished(partial):
                shutil.rmtree(partial)
        raise


def _is_identity(purifier: Any) -> bool:
    from jaxpurify.purify.combine import Chain, Identity

    stages = purifier.stages if isinstance(purifier, Chain) else (purifier,)
    return all(isinstance(stage, Identity) for stage in stages)
