"""Winograd's forms of 3 × 3 convolutions with stride 1: fewer products of more sums.

F(4, 3) along a row takes 6 products of combinations of columns for four neighbouring results instead of 12, from the
points 0, ±1, ±2 and infinity; F(2, 3) takes 4 for two results of a column instead of 6, from 0, ±1 and infinity (Lavin
and Gray, arXiv:1509.09308, sections 4.1 and 4.3). One inside of the other takes 24 for eight results instead of 72.
Errors are about 4e-6 of the largest value. Images and outputs are NHWC, kernels HWIO.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

# Of F(4, 3): across a row.
_INPUT_ACROSS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL_ACROSS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT_ACROSS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# Of F(2, 3): down a column.
INPUT_DOWN = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
KERNEL_DOWN = ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1))
OUTPUT_DOWN = ((1, 1, 1, 0), (0, 1, -1, -1))
_NOTHING = (0, 0, 0)


def fits(images, kernel_shape, stride, across):
    """Whether the forms exist for these shapes and are faster; `across` is the width of the result.

    32 channels gain on maps of up to 16² only, milliseconds on one core of an EPYC (Zen 4): 128 × 16² 32→64 12.2 → 9.3,
    32→32 6.2 → 4.8; 128 × 32² 16→32 none.
    """
    exists = (*kernel_shape[:2], stride) == (3, 3, 1) and images.dtype == jnp.float32
    return exists and min(kernel_shape[2:]) >= (64 if across > 16 else 32) and across >= 4


def convolve(images, kernel, pads, across, *, reverse=False):
    """The convolution; `pads` are (before, after) for height and width.

    `reverse` is for the gradient for the images: the kernel's taps in reverse, its inputs and outputs exchanged.

    Down the columns as well where the result has 128 channels, milliseconds on one core of an EPYC (Zen 4), across only
    against both: 128 × 4² 128→128 6.6 → 2.9; 64 × 8² 256→256 28.3 → 20.0; 64 × 4² 512→512 28.4 → 22.3; 64 × 16² 128→128
    26.7 → 22.3; none for 128 × 8² 128→64 (7.0 → 7.8) and 64 × 32² 64→64 (33.0 → 34.9).
    """
    kernel = kernel[::-1, ::-1] if reverse else kernel
    kernels = [combine(row, [kernel[:, tap] for tap in range(3)]) for row in _KERNEL_ACROSS]
    form = _both_ways if kernel.shape[2 if reverse else 3] >= 128 else _across_only
    return form(images, kernels, pads, across, reverse)


def _across_only(images, kernels, pads, across, reverse):
    """`kernels` are the six combinations of the kernel's columns, each [3, I, O]."""
    if reverse:  # written out: inside of a loop XLA takes three times as long with a kernel of another layout
        kernels = [taps.transpose(0, 2, 1) for taps in kernels]
    window = _window(images, -(-across // 4), pads[1][0])
    # The barriers keep XLA from computing a combination once for every place where it is used.
    window, kernels = lax.optimization_barrier(([combine(row, window) for row in _INPUT_ACROSS], kernels))
    products = [
        lax.conv_general_dilated(
            part, taps[:, None], (1, 1), [pads[0], (0, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for part, taps in zip(window, kernels, strict=True)
    ]
    return _joined_across(lax.optimization_barrier(products), across)


def _both_ways(images, kernels, pads, across, reverse):
    """Matrix products throughout; `reverse` contracts the outputs of the kernels, for to write 24 of them out exchanged
    takes longer than the products."""
    before, after = pads[0]
    down = images.shape[1] + before + after - 2
    pairs = -(-down // 2)
    window = _windows(images, pairs, -(-across // 4), before, pads[1][0])
    kernels = [[combine(row, [taps[tap] for tap in range(3)]) for row in KERNEL_DOWN] for taps in kernels]
    products = matrix_products(window, kernels, images.dtype, contracted=1 if reverse else 0)
    rows = [joined([[combine(row, four)] for row in OUTPUT_DOWN])[:, :down] for four in products]
    return _joined_across(lax.optimization_barrier(rows), across)


def kernel_gradient(images, outputs, padding):
    """The gradient for the kernel: the transposed transforms, both ways, around one matrix product for each of 24."""
    height, across = outputs.shape[1:3]
    pairs, tiles = -(-height // 2), -(-across // 4)
    window = _windows(images, pairs, tiles, padding, padding)
    outputs = lax.pad(outputs, 0.0, (_NOTHING, (0, 2 * pairs - height, 0), (0, 4 * tiles - across, 0), _NOTHING))
    outputs = outputs.reshape(outputs.shape[0], pairs, 2, tiles, 4, -1)
    down = [combine(row, [outputs[:, :, 0], outputs[:, :, 1]]) for row in zip(*OUTPUT_DOWN, strict=True)]
    down = lax.optimization_barrier(down)
    slopes = [
        [combine(row, [part[:, :, :, column] for column in range(4)]) for part in down]
        for row in zip(*_OUTPUT_ACROSS, strict=True)
    ]
    window, slopes = lax.optimization_barrier((window, slopes))
    # Matrix products, though a convolution would do: XLA's takes two to four times as long here.
    products = [
        [flat(part).T @ flat(slope) for part, slope in zip(*column, strict=True)]
        for column in zip(window, slopes, strict=True)
    ]
    products = lax.optimization_barrier(products)
    rows = [jnp.stack([combine(row, four) for row in zip(*KERNEL_DOWN, strict=True)]) for four in products]
    return jnp.stack([combine(row, rows) for row in zip(*_KERNEL_ACROSS, strict=True)], 1)


def _window(images, tiles, before):
    """The six columns that four neighbouring results see: each [B, H, tiles, I]."""
    batch, height, width, inputs = images.shape
    images = lax.pad(images, 0.0, (_NOTHING, _NOTHING, (before, 4 * (tiles + 1) - width - before, 0), _NOTHING))
    quads = images.reshape(batch, height, tiles + 1, 4, inputs)
    return [quads[:, :, :tiles, column] for column in range(4)] + [quads[:, :, 1:, column] for column in range(2)]


def _windows(images, pairs, tiles, above, before):
    """The 6 × 4 combinations of what 4 × 2 neighbouring results see: each [B, pairs, tiles, I]."""
    far = 2 * (pairs + 1) - images.shape[1] - above
    images = lax.pad(images, 0.0, (_NOTHING, (above, far, 0), _NOTHING, _NOTHING))
    columns = lax.optimization_barrier([combine(row, _window(images, tiles, before)) for row in _INPUT_ACROSS])
    window = []
    for part in columns:
        halves = part.reshape(part.shape[0], pairs + 1, 2, *part.shape[2:])
        four = [halves[:, :pairs, 0], halves[:, :pairs, 1], halves[:, 1:, 0], halves[:, 1:, 1]]
        window.append([combine(row, four) for row in INPUT_DOWN])
    return window


def _joined_across(products, across):
    """Results of a row from their six products, each [B, H, tiles, O]."""
    return joined([[combine(row, products) for row in _OUTPUT_ACROSS]])[:, :, :across]


def matrix_products(window, kernels, dtype, *, contracted):
    """Of windows [..., I] and kernels, both in `dtype`, with float32 results; the kernels' axis `contracted` is summed.

    XLA:CPU computes products of bfloat16 matrices at twice the rate of float32, where their result is float32.
    """
    # The barriers keep XLA from computing a combination once for every place where it is used.
    window, kernels = lax.optimization_barrier(jax.tree.map(lambda part: part.astype(dtype), (window, kernels)))
    axes = ((1,), (contracted,)), ((), ())
    products = [
        [
            lax.dot_general(flat(part), taps, axes, preferred_element_type=jnp.float32).reshape(*part.shape[:-1], -1)
            for part, taps in zip(*column, strict=True)
        ]
        for column in zip(window, kernels, strict=True)
    ]
    return lax.optimization_barrier(products)


def flat(maps):
    """Positions × channels. XLA:CPU has fast matrix products only: contracting three axes takes five times as long."""
    return maps.reshape(-1, maps.shape[-1])


def joined(pixels):
    """Maps [B, rows · H, columns · W, C] from the pixels of their tiles: rows of columns of [B, H, W, C].

    Along the last axis, for XLA:CPU leaves such a concatenation whole; others it may compute anew inside of what reads
    them, milliseconds on one core of an EPYC (Zen 4): the convolutional energy's gradient for 32 images in bfloat16
    takes 36 then and 26 so, an update of ResNet-9 on 128 images 233 and 208.
    """
    rows = [jnp.concatenate(row, -1) for row in pixels]
    batch, height, width, _ = rows[0].shape
    flat_rows = [row.reshape(batch, height, -1) for row in rows]
    channels = pixels[0][0].shape[-1]
    return jnp.concatenate(flat_rows, -1).reshape(batch, height * len(rows), width * len(pixels[0]), channels)


def combine(weights, terms):
    """The sum of weight · term without the terms whose weight is 0."""
    parts = [term if weight == 1 else weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return functools.reduce(jnp.add, parts)
