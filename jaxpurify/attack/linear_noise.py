"""Linearly separable perturbations (LSP): patches whose colours alone give the class away."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from jaxpurify.attack.budget import CHUNK, add_levels
from jaxpurify.attack.choose import StoredLabels, check_dataset, choose, poison_count, positions
from jaxpurify.data.poison import Poison
from jaxpurify.random import image_keys, named
from jaxpurify.types import StoredImages

SEPARATION = 10.0


def linear_noise(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    *,
    epsilon: float | None = None,
    patch: int = 8,
    fraction: float = 1.0,
) -> Poison:
    """LSP (arXiv:2111.00898): adds delta = upsample(v_y + A_y z), scaled to an L2 norm of `epsilon`.

    Each image has its own normal z, each class its own vertex v in {-10, 10}^F of a hypercube and its own
    mixing matrix A ~ U(-1, 1)^{F x F}; F = cells × channels. Labels are kept. A pure function of the key, the
    labels and the positions; no model is involved.

    Args:
      images: the stored training images, uint8 [N, H, W, C].
      labels: their labels, integers [N].
      key: draws v, A, z and, for `fraction` below 1, the poisoned examples; consumed.
      epsilon: bound of the L2 norm of each image's perturbation, units of [0, 1]. Default 6/255 √(HWC):
        1.304 for 32×32×3.
      patch: side in pixels of the squares over which the perturbation is constant.
      fraction: the share of all N examples that are poisoned.

    Raises:
      ValueError: `epsilon` too small to change a stored image, `patch` outside 1 … min(H, W), too few cells
        to tell the classes apart, or `fraction` outside (0, 1].

    Warning: the published code truncates the sum to 8 bits, which darkens by half a level and lets the norm
    drift. Here the perturbation itself is rounded to whole levels, shrunk where rounding would break the bound.
    """
    check_dataset(images, labels)
    height, width, channels = images.shape[1:]
    if not 1 <= patch <= min(height, width):
        raise ValueError(f"patch is {patch}; on {height}x{width} images it must be 1 … {min(height, width)}")
    epsilon = 6 / 255 * float(np.sqrt(height * width * channels)) if epsilon is None else epsilon
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the bound of the L2 norm must be above 0")
    cells = (-(-height // patch), -(-width // patch), channels)
    classes = int(labels.max()) + 1
    if classes > 2 ** (cells[0] * cells[1] * channels):
        raise ValueError(f"patch is {patch}; {cells[0]}x{cells[1]} cells cannot tell {classes} classes apart")
    number = poison_count(None, fraction, len(labels))
    index = choose(named(key, "choice"), positions(labels >= 0), number, what="images")
    # A cell at the border is cut off where the patch does not divide the image: it weighs fewer pixels.
    pixels = np.outer(_cell_lengths(height, patch), _cell_lengths(width, patch))[None, :, :, None]
    poisoned = np.empty((number, height, width, channels), np.uint8)
    for start in range(0, number, CHUNK):
        part = index[start : start + CHUNK]
        colours = np.asarray(linear_patterns(key, jnp.asarray(labels[part]), jnp.asarray(part), classes, cells))
        change = _levels_within(colours, pixels, epsilon)
        if not change.any():
            raise ValueError(f"epsilon is {epsilon}; this L2 norm is too small to change a stored 8-bit image")
        change = change.repeat(patch, 1).repeat(patch, 2)[:, :height, :width]
        poisoned[start : start + CHUNK] = add_levels(images[part], change)
    return Poison(
        images=poisoned,
        labels=labels[index].astype(np.int32),
        index=index,
        target=None,
        trigger=None,
        how={
            "attack": "linear_noise",
            "labels_changed": False,
            "count": number,
            "norm": "l2",
            "epsilon": float(epsilon),
            "patch": patch,
        },
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def linear_patterns(
    key: Key[Array, ""],
    labels: Int[Array, "batch"],
    index: Int[Array, "batch"],
    classes: int,
    cells: tuple[int, int, int],
) -> Float[Array, "batch rows columns channels"]:
    """The unscaled colours v_y + A_y z of each image's cells; `index` [B] are positions in the training set."""
    features = cells[0] * cells[1] * cells[2]
    # Distinct vertices: the first coordinates spell out the class, flipped at random; the others are free.
    coded = (classes - 1).bit_length()
    spelled = jnp.right_shift(jnp.arange(classes)[:, None], jnp.arange(coded)[None, :]) % 2 == 1
    flips = jax.random.bernoulli(named(key, "flips"), 0.5, (1, coded))
    free = jax.random.bernoulli(named(key, "vertices"), 0.5, (classes, features - coded))
    bits = jnp.concatenate([jnp.logical_xor(spelled, flips), free], 1)
    vertices = SEPARATION * (2.0 * bits.astype(jnp.float32) - 1)
    mixing = jax.random.uniform(named(key, "mixing"), (classes, features, features), minval=-1, maxval=1)
    keys = image_keys(named(key, "images"), index)
    normal = jax.vmap(lambda one: jax.random.normal(one, (features,)))(keys)
    # Every class's mixing of every z, then a choice: gathering one matrix an image would need far more memory.
    mixed = jnp.einsum("cij,bj->cbi", mixing, normal)
    colours = vertices[labels] + mixed[labels, jnp.arange(len(labels))]
    return colours.reshape(-1, *cells)


def _levels_within(colours: np.ndarray, pixels: np.ndarray, epsilon: float) -> np.ndarray:
    """Colours [B, h, w, C] scaled to the L2 norm `epsilon` and rounded to levels, the norm still holding.

    Rounding up can break the bound, so the scale of such an image is found by bisection on the rounded norm.
    """
    colours = colours.astype(np.float64)
    norm = np.sqrt((colours**2 * pixels).sum((1, 2, 3), keepdims=True))
    unit = colours * (255 * epsilon / np.maximum(norm, 1e-12))

    def fits(scale):
        rounded = np.rint(unit * scale)
        return (rounded**2 * pixels).sum((1, 2, 3), keepdims=True) <= (255 * epsilon) ** 2

    high = np.ones_like(norm)
    low = np.where(fits(high), high, 0.0)
    for _ in range(16):
        middle = (low + high) / 2
        good = fits(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.rint(unit * low).astype(np.int16)


def _cell_lengths(size: int, patch: int) -> np.ndarray:
    starts = np.arange(0, size, patch)
    return np.minimum(patch, size - starts)
