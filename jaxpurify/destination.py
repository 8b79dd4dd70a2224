"""Output that is either complete or absent: written under a temporary name beside its place, renamed at the end."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import shutil
import uuid

# A folder that holds this file was written here, so that `force` can tell it from a folder of the user.
MARK = ".jaxpurify"


@contextlib.contextmanager
def replacing(destination: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Yields a free temporary path beside `destination`; what is written there is renamed to it at the end.

    On any error, a full disk or an interrupt included, the temporary file or folder is removed and what was at
    `destination` before is left as it was.

    Args:
      destination: file or folder to write; missing parent folders are made.
      force: replace what is there. A folder is replaced only if it is empty or was written by this function.
      source: where the data come from; it is never overwritten.

    Raises:
      ValueError: `destination` exists, or may not be replaced.
    """
    destination = Path(destination)
    check_destination(destination, force=force, source=source)
    made = [parent for parent in destination.parents if not parent.exists()]
    temporary = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            (temporary / MARK).write_text("Written by jaxpurify; replaced as a whole with force.\n")
        _rename(temporary, destination)
    except BaseException:
        _remove(temporary)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def check_destination(destination: Path, *, force: bool = False, source: Path | None = None) -> None:
    """Raises `ValueError` where `replacing` would refuse `destination`, so that long work can fail before it starts."""
    destination = Path(destination)
    for parent in destination.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            raise ValueError(f"cannot write {destination}: {parent} is not a folder")
    if source is not None:
        here, there = destination.resolve(), Path(source).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ValueError(f"destination {destination} overlaps its source {source}; choose a place outside of it")
    if not os.path.lexists(destination):
        return
    if not force:
        raise ValueError(f"{destination} exists already; choose another destination or force it to be replaced")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / MARK).exists():
        raise ValueError(f"{destination} is a folder that was not written by jaxpurify; it is not replaced")


def _rename(temporary: Path, destination: Path) -> None:
    """Puts `temporary` in the place of `destination`; a folder that was there is put back if that fails."""
    if not destination.is_dir() and not temporary.is_dir():
        os.replace(temporary, destination)
        return
    old = temporary.with_suffix(".old")
    replaced = os.path.lexists(destination)
    if replaced:
        os.rename(destination, old)
    try:
        os.rename(temporary, destination)
    except BaseException:
        if replaced:
            os.rename(old, destination)
        raise
    if replaced:
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
