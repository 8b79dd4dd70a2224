"""What all commands share: reading options, seeds and places to write to."""

from collections.abc import Callable, Iterable
import os
from pathlib import Path
import shutil
from typing import Annotated, Any

import tyro

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
MOST_SEED = 2**32 - 1


def read_options(kind: Callable[..., Any], arguments: list[str], *, command: str) -> Any:
    """The command line as a `kind`, whose fields are the flags and whose docstring is the help.

    Raises:
      SystemExit: `--help` (status 0), or options that do not fit (2), after saying so on stderr.
    """
    return tyro.cli(kind, args=arguments, prog=f"jaxpurify {command}", config=(tyro.conf.FlagCreatePairsOff,))


def check_seed(seed: int) -> None:
    """Raises `ValueError` for a seed that is not in 0 … 2³²−1."""
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed {seed} is out of range; it must be in 0 … {MOST_SEED}")


def check_place(path: Path, *, force: bool = False, source: str = "", reads: Iterable[Path] = ()) -> None:
    """Raises `ValueError` unless something may be written at `path`: call it before long work.

    Args:
      path: the file or folder.
      force: it may replace what is there.
      source: the source string that is read; `path` must neither lie in it nor replace it.
      reads: files that are read too, and must not be replaced either.
    """
    for read in reads:
        if path.resolve() == read.resolve():
            raise ValueError(f"{path} is read and would be replaced by what is written; choose another place")
    from jaxpurify.data.sources import source_path
    from jaxpurify.destination import check_destination

    check_destination(path, force=force, source=source_path(source))
    place = _existing_parent(path)
    if not os.access(place, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission to write in {place}")


def check_output(
    path: Path, *, force: bool = False, source: str = "", suffix: str = "", reads: Iterable[Path] = ()
) -> None:
    """As `check_place`, for one file, whose name must end with `suffix`."""
    if path.suffix != suffix and suffix:
        raise ValueError(f"{path} must end with {suffix}")
    check_place(path, force=force, source=source, reads=reads)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a file is written here")


def check_space(path: Path, needed: int) -> None:
    """Raises `OSError` if the disk that is to hold `path` has fewer than `needed` bytes free."""
    place = _existing_parent(path)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(f"the disk that holds {place} has {free / 2**20:.0f} MB free; {needed / 2**20:.0f} MB are needed")


def check_two_classes(labels: Any, source: str) -> None:
    """Raises `ValueError` if all `labels` are equal: nothing can be learned or attacked then."""
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"source {source!r} holds images of one class only; at least two classes are needed")


def sibling(path: Path, ending: str) -> Path:
    """The path beside `path` whose name has `ending` added: DEST and `.partial` give DEST.partial."""
    return Path(os.fspath(path) + ending)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
