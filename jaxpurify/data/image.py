"""Between stored images, uint8 0 … 255, and the float32 images in [0, 1] that every function works on."""

import types
from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

AnyArray = TypeVar("AnyArray", Array, np.ndarray)

# 1/255 in two parts, of which the first has 9 bits: its product with a level is exact, so that the sum is the
# correctly rounded v / 255. XLA turns a division by a constant into a product with the rounded 1/255, which is
# off in the last bit for half of the levels, and NumPy does not.
_HIGH = np.float32(257 / 65536)
_LOW = np.float32(1 / 255 - 257 / 65536)


def to_float(images: UInt8[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """v / 255: stored uint8 to float32 in [0, 1], correctly rounded, the same bits in NumPy, in JAX and under `jit`.

    NumPy in, NumPy out; otherwise a JAX array.
    """
    levels = images.astype(_namespace(images).float32)
    return levels * _HIGH + levels * _LOW


def to_uint8(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """round(255 · clip(x, 0, 1)): float images to stored uint8; the identity on v / 255 for every v in 0 … 255.

    Values outside of [0, 1] saturate. NumPy in, NumPy out; otherwise a JAX array, also inside `jit`.

    Raises:
      ValueError: a NumPy image is not finite. A JAX array is not checked: callers look at it once, outside of `jit`.
    """
    numpy = _namespace(images)
    _check_finite(images)
    scaled = numpy.clip(images.astype(numpy.float32), 0, 1) * numpy.float32(255)
    return numpy.round(scaled).astype(numpy.uint8)


def compat_floor(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """floor(255 · (y + 1) / 2) with y = (x - 0.5) / 0.5 in float32: the published truncation, for comparisons only.

    .. warning::
       The published code of PureGen (arXiv:2405.18627) writes images this way. The round trip through
       [-1, 1] loses one bit of precision, so truncation darkens every grey level 1 … 63 by one, even without
       a purifier; `to_uint8` does not. Published code also lets values outside of [0, 1] wrap around;
       here they saturate. This is not the plain floor(255 · x) of the poisoning benchmark's crafters, which
       leaves stored levels as they are (8/255 stays 8, here 7): nothing here writes that way, and files
       written so are read by `read_benchmark`.

    Raises:
      ValueError: a NumPy image is not finite.
    """
    numpy = _namespace(images)
    _check_finite(images)
    half = numpy.float32(0.5)
    signed = (numpy.clip(images.astype(numpy.float32), 0, 1) - half) / half
    unsigned = (signed + numpy.float32(1)) / numpy.float32(2)
    return numpy.floor(unsigned * numpy.float32(255)).astype(numpy.uint8)


def _namespace(images: Array | np.ndarray) -> types.ModuleType:
    return np if isinstance(images, np.ndarray) else jnp


def _check_finite(images: Array | np.ndarray) -> None:
    if isinstance(images, np.ndarray) and not np.isfinite(images).all():
        bad = int(images.size - np.isfinite(images).sum())
        raise ValueError(f"images hold {bad} values that are NaN or infinite; only finite values can be stored")
