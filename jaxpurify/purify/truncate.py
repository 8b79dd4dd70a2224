"""The published way of writing images as the last stage of a purifier, for comparisons with published files."""

import jax.numpy as jnp

from jaxpurify.data.image import compat_floor, to_float
from jaxpurify.struct import struct
from jaxpurify.types import Images, Keys


@struct
class Truncate:
    """Leaves images [B, H, W, C] as `data.compat_floor` would store them, in [0, 1]; no key is used.

    What is stored afterwards, by rounding, are those levels: `chain(purifier, Truncate())` writes what the published
    code of PureGen (arXiv:2405.18627) writes, values outside of [0, 1] excepted, which wrap around there. NaN and
    infinite values stay.

    Warning:
      It darkens the levels 1 … 63 by one whatever the purifier before it does. Its gradient is 0 everywhere: `Adaptive`
      takes it for the identity when truncated and has no exact mode for it.
    """

    def __call__(self, keys: Keys, images: Images) -> Images:
        return jnp.where(jnp.isfinite(images), to_float(jnp.asarray(compat_floor(images))), images)
