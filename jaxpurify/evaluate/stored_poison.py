"""A poison that somebody has crafted already, as an attack that grids can run and `craft` can convert."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from jaxtyping import Array, Key

from jaxpurify.attack.catalogue import Attack
from jaxpurify.attack.choose import StoredLabels
from jaxpurify.data.interchange import read_benchmark
from jaxpurify.data.locate import check_made_for, level_limit
from jaxpurify.data.poison import Poison, load_poison
from jaxpurify.data.poison_packages import read_bullseye, read_metapoison
from jaxpurify.types import StoredImages

READERS = {"benchmark": read_benchmark, "metapoison": read_metapoison, "bullseye": read_bullseye}
FORMATS = ("npz", *READERS)


def stored(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    path: str,
    format: str | None = None,
    epsilon: float | None = None,
    search: bool = False,
) -> Poison:
    """Reads a poison, checked against the training set that it was made for.

    Args:
      images: the training images, uint8 [N, H, W, C].
      labels: their labels [N].
      key: not used: every seed of a grid is another victim of the same poison.
      path: the file or folder.
      format: `npz` (ours), `benchmark` (a folder of the poisoning benchmark), `metapoison` or `bullseye`; None: a
        folder is a benchmark's, a file whose name ends in .npz is ours.
      epsilon: how far poisons may be from the images that they replace, units of [0, 1]; None: what the format's own
        code uses. Not for `npz`, whose poisons say it themselves.
      search: of `benchmark`: look for the images that poisons replace, where this training set is in another order
        than the benchmark's. The other two formats always look for them.

    Raises:
      ValueError: an unknown format, options that it does not use, or what its reader refuses.
    """
    del key
    if format is None:
        format = "benchmark" if Path(path).is_dir() else "npz" if str(path).endswith(".npz") else None
    if format not in FORMATS:
        raise ValueError(f"format is {format!r} for {path}; known: {', '.join(FORMATS)}")
    if search and format != "benchmark":
        raise ValueError(f"search is {search} for {path}; it is an option of format 'benchmark', not {format!r}")
    if format == "npz":
        if epsilon is not None:
            raise ValueError(f"epsilon is {epsilon}; poisons in {path} say theirs themselves")
        poison = load_poison(path)
        if len(poison):
            limit = level_limit(poison.how.get("epsilon") if poison.how.get("norm") == "linf" else None)
            check_made_for(path, poison.images, poison.index, images, limit)
        return poison
    options: dict[str, Any] = {"search": True} if search else {}
    if epsilon is not None:
        options["epsilon"] = epsilon
    return READERS[format](path, images, labels, **options)


STORED = Attack(stored, "a poison from a file or folder, crafted elsewhere", "nothing", False, False, "")


def file_digest(path: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a file, or of the files of a folder with their names.

    Raises:
      ValueError: it cannot be read.
    """
    place = Path(path)
    try:
        named = place.is_dir()
        files = sorted(file for file in place.iterdir() if file.is_file()) if named else [place]
        return _digest(tuple(files), tuple(file.stat().st_mtime_ns for file in files), named)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


@functools.lru_cache
def _digest(files: tuple[Path, ...], written: tuple[int, ...], named: bool) -> str:
    """`written`, when each file was, is there for the cache: a grid asks once a cell."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" if named else b"")
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
