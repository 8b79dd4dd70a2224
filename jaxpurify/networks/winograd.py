"""Winograd's F(4, 3) along one axis: 3 × 3 convolutions with stride 1 in half of the products.

Four neighbouring results of a row take 6 products of combinations of columns instead of 12, from the points 0, ±1, ±2
and infinity (Lavin and Gray, arXiv:1509.09308, section 4.3). Errors are about 4e-6 of the largest value.
Images and outputs are NHWC, kernels HWIO.
"""

import functools

from jax import lax
import jax.numpy as jnp

_INPUT_TRANSFORM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT_TRANSFORM = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_NOTHING = (0, 0, 0)


def fits(images, kernel_shape, stride, across):
    """Whether the form exists for these shapes and is faster; `across` is the width of the result."""
    exists = (*kernel_shape[:2], stride) == (3, 3, 1) and images.dtype == jnp.float32
    return exists and min(kernel_shape[2:]) >= 64 and across >= 4


def convolve(images, kernel, pads, across, *, reverse=False):
    """The convolution; `pads` are (before, after) for height and width.

    `reverse` is for the gradient for the images: the kernel's taps in reverse, its inputs and outputs exchanged.
    """
    kernel = kernel[::-1, ::-1] if reverse else kernel
    kernels = [_combine(row, [kernel[:, tap, None] for tap in range(3)]) for row in _KERNEL_TRANSFORM]
    product = _rows_as_products if min(kernel.shape[2:]) >= 256 else _rows_as_convolution
    if reverse and product is _rows_as_convolution:
        # Written out: inside of a loop XLA takes three times as long with a kernel of another layout.
        kernels, reverse = [taps.transpose(0, 1, 3, 2) for taps in kernels], False
    window = _window(images, -(-across // 4), pads[1][0])
    # The barriers keep XLA from computing a combination once for every place where it is used.
    window, kernels = lax.optimization_barrier(([_combine(row, window) for row in _INPUT_TRANSFORM], kernels))
    products = [product(part, taps, pads[0], reverse) for part, taps in zip(window, kernels, strict=True)]
    products = lax.optimization_barrier(products)
    result = jnp.stack([_combine(row, products) for row in _OUTPUT_TRANSFORM], 3)
    return result.reshape(*result.shape[:2], -1, result.shape[-1])[:, :, :across]


def kernel_gradient(images, outputs, padding):
    """The gradient for the kernel: the transposed transforms around one matrix product for each row of the kernel."""
    height, across = outputs.shape[1:3]
    tiles = -(-across // 4)
    window = _window(lax.pad(images, 0.0, (_NOTHING, (padding, padding, 0), _NOTHING, _NOTHING)), tiles, padding)
    window = [_combine(row, window) for row in _INPUT_TRANSFORM]
    outputs = lax.pad(outputs, 0.0, (_NOTHING, _NOTHING, (0, 4 * tiles - across, 0), _NOTHING))
    outputs = outputs.reshape(*outputs.shape[:2], tiles, 4, -1)
    columns = [outputs[:, :, :, column] for column in range(4)]
    slopes = [_combine(row, columns) for row in zip(*_OUTPUT_TRANSFORM, strict=True)]
    window, slopes = lax.optimization_barrier((window, slopes))
    # Matrix products, though a convolution would do: XLA's takes two to four times as long here.
    products = [
        jnp.stack([_flat(part[:, row : row + height]).T @ _flat(slope) for row in range(3)])
        for part, slope in zip(window, slopes, strict=True)
    ]
    products = lax.optimization_barrier(products)
    return jnp.stack([_combine(row, products) for row in zip(*_KERNEL_TRANSFORM, strict=True)], 1)


def _window(images, tiles, before):
    """The six columns that four neighbouring results see: each [B, H, tiles, I]."""
    batch, height, width, inputs = images.shape
    images = lax.pad(images, 0.0, (_NOTHING, _NOTHING, (before, 4 * (tiles + 1) - width - before, 0), _NOTHING))
    quads = images.reshape(batch, height, tiles + 1, 4, inputs)
    return [quads[:, :, :tiles, column] for column in range(4)] + [quads[:, :, 1:, column] for column in range(2)]


def _rows_as_convolution(part, taps, pads, _):
    return lax.conv_general_dilated(part, taps, (1, 1), [pads, (0, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _rows_as_products(part, taps, pads, reverse):
    """The same as three matrix products: with 512 channels on 4 × 4 images in a quarter of the convolution's time.

    `reverse` exchanges inputs and outputs of `taps`; to write so many out exchanged takes longer than the products.
    """
    part = lax.pad(part, 0.0, (_NOTHING, (*pads, 0), _NOTHING, _NOTHING))
    shape = part.shape[0], part.shape[1] - 2, part.shape[2], -1
    rows = [_flat(part[:, row : row + shape[1]]) for row in range(3)]
    contracted = ((1,), (1 if reverse else 0,)), ((), ())
    products = [lax.dot_general(row, tap[0], contracted) for row, tap in zip(rows, taps, strict=True)]
    return functools.reduce(jnp.add, products).reshape(shape)


def _flat(maps):
    """Positions × channels. XLA:CPU has fast matrix products only: contracting three axes takes five times as long."""
    return maps.reshape(-1, maps.shape[-1])


def _combine(weights, terms):
    """The sum of weight · term without the terms whose weight is 0."""
    parts = [term if weight == 1 else weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return functools.reduce(jnp.add, parts)
