"""Random augmentations on the device: callables `(keys, images) -> images`, images [B, H, W, C] in [0, 1].

One key an image, consumed, so that what happens to an image does not depend on the batch around it. All of them
are differentiable with respect to the images. On CPU the slices of `jax.vmap(lax.dynamic_slice)` are an order of
magnitude faster than chains of selects, and several times faster than one-hot products, which would also
round on accelerators with short mantissas.
"""

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxpurify.random import fold, uniform
from jaxpurify.struct import static, struct
from jaxpurify.types import Images, Keys

_PAD_MODES = {"zero": "constant", "reflect": "reflect", "edge": "edge"}


@struct
class Flip:
    """Mirrors left and right with probability 1/2."""

    def __call__(self, keys: Keys, images: Images) -> Images:
        flipped = uniform(keys, (1, 1, 1)) < 0.5
        return jnp.where(flipped, images[:, :, ::-1], images)


@struct
class PadCrop:
    """Pads every side by `padding` pixels and crops back at a uniformly random place.

    `mode` is what is padded with: "zero" (black), "reflect" (mirror without repeating the edge) or "edge".
    """

    padding: int = static(default=4)
    mode: str = static(default="zero")

    def __post_init__(self):
        _check_mode(self.mode)
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding}; it must be 0 or more pixels")

    def __call__(self, keys: Keys, images: Images) -> Images:
        corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * self.padding + 1))(keys)
        return _crop(_pad(images, self.padding, self.mode), corners, images.shape[1], images.shape[2])


@struct
class Cutout:
    """Fills one square of `size` x `size` pixels with `fill` (arXiv:1708.04552).

    The centre is uniform over all pixels, so that a part of the square may lie outside, as in the paper.

    .. warning::
       Published code cuts out after normalising, so that its zeros are the mean of the data set; here `fill`
       is a value in [0, 1] or one a channel [C], 0 (black) unless told otherwise.
    """

    size: int = static()
    fill: float | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, "channels"] = 0.0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}; a cutout is at least 1 pixel wide")

    def __call__(self, keys: Keys, images: Images) -> Images:
        height, width = images.shape[1:3]
        limits = jnp.array([height, width])
        centres = jax.vmap(lambda key: jax.random.randint(key, (2,), jnp.zeros(2, int), limits))(keys)
        first = centres - self.size // 2
        rows = jnp.arange(height)[None] - first[:, :1]
        columns = jnp.arange(width)[None] - first[:, 1:]
        inside = ((rows >= 0) & (rows < self.size))[:, :, None] & ((columns >= 0) & (columns < self.size))[:, None, :]
        return jnp.where(inside[..., None], jnp.asarray(self.fill, images.dtype), images)


@struct
class Shift:
    """Moves the image by a real number of pixels, uniform in [-pixels, pixels] on each axis, bilinearly.

    `mode` fills what comes in: "zero" (black, as PureGen's friendly-noise baseline, arXiv:2405.18627, which
    moves by up to 8/31 of the half width, 4 pixels of 32), "edge" or "reflect".
    """

    pixels: int = static(default=4)
    mode: str = static(default="zero")

    def __post_init__(self):
        _check_mode(self.mode)
        if self.pixels < 0:
            raise ValueError(f"pixels is {self.pixels}; it must be 0 or more")

    def __call__(self, keys: Keys, images: Images) -> Images:
        moves = (uniform(keys, (2,)) * 2.0 - 1.0) * self.pixels
        return shift(images, moves, self.pixels, self.mode)


@struct
class ContinuousShift:
    """Moves by a real number of pixels on each axis, bilinearly, and mirrors half of the images: one warp.

    The augmentation through which gradient matching crafts (Witches' Brew, arXiv:2009.02276, published code) and with
    which its victims train: shifts uniform in [-pixels, pixels], then left and right exchanged with probability 1/2.

    Args:
      pixels: the largest shift: 4 for 32 × 32, 2 for 28 × 28, 8 for 64 × 64, 28 for 224 × 224.
      fill: what comes in, a number in [0, 1] or one a channel [C]. The published code pads with zeros after
        normalisation, so that its fill is the mean colour of the data set.
      flip: whether images are mirrored at all.
    """

    pixels: int = static(default=4)
    fill: float | Float[Array, "channels"] = 0.5
    flip: bool = static(default=True)

    def __post_init__(self):
        if self.pixels < 0:
            raise ValueError(f"pixels is {self.pixels}; it must be 0 or more")

    def __call__(self, keys: Keys, images: Images) -> Images:
        return self.warp(uniform(keys, (3,)), images)

    def warp(self, numbers: Float[Array, "batch 3"], images: Images) -> Images:
        """The warp that belongs to numbers in [0, 1): across, down, and mirrored where the third is above 1/2."""
        if self.flip:
            images = jnp.where(numbers[:, 2, None, None, None] > 0.5, images[:, :, ::-1], images)
        fill = jnp.broadcast_to(jnp.asarray(self.fill, images.dtype), images.shape[3:]).reshape(1, 1, 1, -1)
        moves = (numbers[:, 1::-1] * 2.0 - 1.0) * self.pixels
        return shift(images - fill, moves, self.pixels, "zero") + fill


@struct
class Compose:
    """Applies `stages` in turn; stage i sees the keys folded with i."""

    stages: tuple

    def __call__(self, keys: Keys, images: Images) -> Images:
        for position, stage in enumerate(self.stages):
            images = stage(fold(keys, position), images)
        return images


def shift(images: Images, moves: Float[Array, "batch 2"], pixels: int, mode: str = "zero") -> Images:
    """out[i, j] = x[i + dy, j + dx], bilinear between pixels; `moves` [B, 2] are (dy, dx) in [-pixels, pixels]."""
    height, width = images.shape[1:3]
    whole = jnp.clip(jnp.floor(moves).astype(int), -pixels, pixels - 1 if pixels else 0)
    part = (moves - whole)[:, :, None, None, None]
    block = _crop(_pad(images, pixels + 1, mode), whole + pixels + 1, height + 1, width + 1)
    rows = block[:, :-1] * (1.0 - part[:, 0]) + block[:, 1:] * part[:, 0]
    return rows[:, :, :-1] * (1.0 - part[:, 1]) + rows[:, :, 1:] * part[:, 1]


def _pad(images: Images, padding: int, mode: str) -> Float[Array, "batch padded_height padded_width channels"]:
    if mode == "reflect" and padding >= min(images.shape[1:3]):
        raise ValueError(f"images of {images.shape[1:3]} pixels are too small to be reflected by {padding}")
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), _PAD_MODES[mode])


def _crop(
    images: Images, corners: Int[Array, "batch 2"], rows: int, columns: int
) -> Float[Array, "batch {rows} {columns} channels"]:
    """[B, rows, columns, C]: the part of each image whose top left pixel is its corner."""

    def crop(image, corner):
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), (rows, columns, image.shape[2]))

    return jax.vmap(crop)(images, corners)


def _check_mode(mode: str) -> None:
    if mode not in _PAD_MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(_PAD_MODES)}")
