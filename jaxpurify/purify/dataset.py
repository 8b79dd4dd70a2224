"""A data set through a purifier: one static batch shape, all devices, resumable, order and length kept."""

import collections
from collections.abc import Callable
import dataclasses
import hashlib
import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify import loop
from jaxpurify.data.image import to_float, to_uint8
from jaxpurify.purify.filter import TopEnergy, check_filters, energies, highest
from jaxpurify.random import image_keys
from jaxpurify.sharding import by_shares, data_mesh, replicate, shard
from jaxpurify.struct import as_operand
from jaxpurify.types import Purifier, StoredImages

_PIXELS = 1 << 15  # that a step between sizes of batches has at least


def purify(
    purifier: Purifier,
    images: StoredImages,
    *,
    key: Key[Array, ""],
    index: Integer[np.ndarray, "_"] | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    directory: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoredImages:
    """Purifies stored images; the result does not depend on batch size, devices or interruptions.

    Args:
      purifier: keys [B] and images [B, H, W, C] in [0, 1] to images of the same shape. A `TopEnergy` ranks all
        `images` first; the ranking is kept in `directory` with the rest.
      images: uint8 [N, H, W, C].
      key: consumed; image i uses fold_in(key, index[i]).
      index: position of each image in its source [N]; default 0 … N-1. Pass it when purifying a part: of several
        hosts, each purifies its own.
      batch_size: the most images in flight, rounded up to a multiple of the number of devices. Batches are of one
        size: the next power of 2 where one is enough for N images, else as small as as many batches allow, in steps of
        a 32nd of the most, or of more batches of at least three quarters of it where fewer images fill them up. Small
        images take coarser steps, of 2¹⁵ pixels: of 32 at 32 × 32, and whole batches at 8 × 8.
      mesh: devices to use; default all of this process.
      directory: where finished batches are kept, so that the same call continues after a kill. The caller
        removes it once the result is safe.
      progress: called with (finished images, all images) after every batch.

    Returns:
      uint8 [N, H, W, C] in the given order.

    Raises:
      ValueError: images of another type or rank, an index of another length or beyond 32 bits, a purifier that does not
        return floating-point images of the same shape, or a `directory` that holds the
        unfinished result of other images, another key or another purifier, or for a purifier with functions that cannot
        be told from others (lambdas); an image became NaN or infinite; a
        `TopEnergy` inside of another purifier, where it cannot see the whole data set.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}; expected uint8 [N, H, W, C]")
    index = np.arange(len(images)) if index is None else index
    if len(index) != len(images):
        raise ValueError(f"index has {len(index)} positions for {len(images)} images")
    if not np.issubdtype(index.dtype, np.integer) or (len(index) and not 0 <= index.min() <= index.max() < 1 << 32):
        raise ValueError("index holds other values than whole numbers from 0 to 2³² − 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; it must be at least 1")
    purifier = as_operand(purifier)
    mesh = data_mesh() if mesh is None else mesh
    batch_size = _static_batch(images.shape, batch_size, mesh.size)
    check_filters(purifier)
    if isinstance(purifier, TopEnergy) and purifier.compat:
        raise ValueError(
            "a filter with compat=True needs to know which images are poisons: it is for tables; or use compat_filt"
        )

    def chosen():
        if not isinstance(purifier, TopEnergy):
            return np.arange(len(images))
        return highest(energies(purifier.energy, images, batch_size=batch_size, mesh=mesh), purifier.fraction)

    result, finished = _open_result(directory, purifier, images, index, key, chosen)
    if isinstance(purifier, TopEnergy):
        purifier = purifier.purifier
    purifier, key = replicate(mesh, (purifier, key))

    in_flight: collections.deque = collections.deque()

    def collect():
        rows, outcome = in_flight.popleft()
        batch, finite = jax.device_get(outcome)
        if not finite.all():
            broken = index[rows[np.argmin(finite[: len(rows)])]]
            raise ValueError(f"image {broken} became NaN or infinite; the purifier's model or step size is unusable")
        result[rows] = batch[: len(rows)]
        _mark(result, finished, rows)
        if progress is not None:
            progress(int(finished.sum()), len(images))

    remaining = np.flatnonzero(~finished)
    for start in range(0, len(remaining), batch_size):
        rows = remaining[start : start + batch_size]
        padded = np.resize(rows, batch_size)  # repeats images to fill the last batch: one static shape
        batch = shard(mesh, (index[padded].astype(np.uint32), images[padded]))
        in_flight.append((rows, loop.call(_Batch(mesh), purifier, key, *batch)))
        if len(in_flight) > 1:
            collect()
    while in_flight:
        collect()
    return np.array(result)


def _static_batch(shape: tuple[int, ...], most: int, devices: int) -> int:
    """The one size of all batches for images of `shape` [N, H, W, C], a multiple of `devices`."""
    count, height, width, _ = shape
    # Every size is a program of its own, which takes longer to compile than so few pixels take to purify: the demo's
    # digits needed ten programs, and 24 seconds for them, where two do.
    least = min(most, max(_PIXELS // (height * width), 1))
    if count <= most:  # a few photographs must not cost a whole batch, nor 26 and 28 of them two compiled programs
        return _round_up(min(most, max(1 << max(count - 1, 0).bit_length(), least)), devices)
    most = _round_up(most, devices)
    unit = _round_up(max(most // 32, least), devices)  # 130 in two of 68 rather than of 128, the last filled up
    fewest = -(-count // most)
    sizes = [min(_round_up(-(-count // batches), unit), most) for batches in range(fewest, 2 * fewest)]
    sizes = sizes[:1] + [size for size in sizes if 4 * size >= 3 * most]
    return min(sizes, key=lambda size: (-(-count // size) * size, -size))


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One batch through a purifier. Compiled, every device computes its share by itself, also where a purifier calls
    the host, for which the compiler would gather the whole batch on one device."""

    mesh: Mesh

    def __call__(self, purifier, key, index, images):
        if loop.runs_in_python(images):
            return _purify_share((index, images), purifier, key)
        return by_shares(self.mesh, _purify_share, (index, images), purifier, key)


def _purify_share(rows, purifier, key):
    index, images = rows
    purified = purifier(*_from_stored(key, index, images))
    if purified.shape != images.shape:
        raise ValueError(f"the purifier made images {purified.shape[1:]} of {images.shape[1:]}; it must keep the shape")
    if not jnp.issubdtype(purified.dtype, jnp.floating):
        raise ValueError(f"the purifier made {purified.dtype} images; it must make floating-point ones in [0, 1]")
    return _to_stored(purified)


@jax.jit
def _from_stored(key, index, images):
    return image_keys(key, index), to_float(images)


@jax.jit
def _to_stored(images):
    return to_uint8(images), jnp.isfinite(images).all((1, 2, 3))


def _open_result(directory, purifier, images, index, key, chosen):
    """The result so far [N, H, W, C] and which rows are finished [N]; on disk where a directory is given.

    `chosen` is called for a new result only: the rows that it does not return are finished as they are.
    """
    if directory is None:
        result, finished = np.zeros_like(images), np.zeros(len(images), bool)
        _keep_others(result, finished, images, chosen())
        return result, finished
    directory = Path(directory)
    for part in jax.tree.leaves(purifier, is_leaf=lambda part: isinstance(part, jax.tree_util.Partial)):
        name = getattr(getattr(part, "func", None), "__qualname__", "")
        if "<" in name:  # a lambda, or a function inside of another: others have the same name
            raise ValueError(f"{name} in the purifier cannot be told from others; without directory, or as a struct")
    identity = fingerprint(purifier, images, index, key)
    record = directory / "fingerprint.json"
    if record.exists():
        if json.loads(record.read_text()) != identity:
            raise ValueError(f"{directory} holds an unfinished result of other images, key or purifier; remove it")
        return np.load(directory / "images.npy", mmap_mode="r+"), np.load(directory / "finished.npy", mmap_mode="r+")
    directory.mkdir(parents=True, exist_ok=True)
    result = np.lib.format.open_memmap(directory / "images.npy", "w+", np.uint8, images.shape)
    finished = np.lib.format.open_memmap(directory / "finished.npy", "w+", bool, (len(images),))
    finished[:] = False
    _keep_others(result, finished, images, chosen())
    result.flush()
    finished.flush()
    temporary = directory / "fingerprint.tmp"
    temporary.write_text(json.dumps(identity))
    temporary.rename(record)
    return result, finished


def _keep_others(result, finished, images, chosen):
    others = np.setdiff1d(np.arange(len(images)), chosen)
    result[others] = images[others]
    finished[others] = True


def _mark(result, finished, rows):
    if isinstance(result, np.memmap):
        result.flush()  # the pixels must be on disk before the mark that says so
    finished[rows] = True
    if isinstance(finished, np.memmap):
        finished.flush()


def fingerprint(purifier: Purifier, images: StoredImages, index: np.ndarray, key: Key[Array, ""]) -> dict[str, str]:
    """Hashes of all that decides a result: the purifier with its weights, images, their positions and the key."""
    leaves, structure = jax.tree.flatten(purifier)
    # Addresses of functions and the order of a network's settings differ between processes and say nothing.
    text = re.sub(r"0x[0-9a-f]+", "", str(structure))
    text = re.sub(r"\{([^{}]*)\}", lambda match: str(sorted(match[1].replace("\n", "").split(","))), text)
    weights = hashlib.sha256(re.sub(r"\s", "", text).encode())
    for leaf in leaves:
        weights.update(np.asarray(leaf).tobytes())
    return {
        "purifier": weights.hexdigest(),
        "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "index": hashlib.sha256(np.ascontiguousarray(index).data).hexdigest(),
        "key": hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes()).hexdigest(),
    }
