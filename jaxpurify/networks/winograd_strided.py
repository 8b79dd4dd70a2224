"""Winograd's form of 4 × 4 convolutions with stride 2 and padding 1, those of the convolutional energy.

Over blocks of 2 × 2 pixels such a convolution has 2 × 2 taps and stride 1. F(2, 2) takes 3 products for two
neighbouring results of two taps instead of 4, from the points 0, 1 and infinity; both ways it takes 9 for four results
instead of 16 (Lavin and Gray, arXiv:1509.09308, section 4). Errors are about 1e-6 of the largest value, for its weights
are 0, 1 and -1 only; in bfloat16, where the products are of bfloat16 matrices with float32 results, 0.5 % of the
values' root mean square. Images and outputs are NHWC, kernels HWIO.
"""

from jax import lax
import jax.numpy as jnp

from jaxpurify.networks.winograd import flat, joined, matrix_products

_BORDER = ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0))
# The pixels 2u and 2u + 1 meet two taps each. Which of the five combinations of outputs (`_slopes_seen`) is which of
# the three products of which of the two pixels.
_PLACES = (((0, 0),), ((0, 1),), ((0, 2), (1, 0)), ((1, 1),), ((1, 2),))


def fits(images, kernel_shape, stride, padding, sizes):
    """Whether the forms exist for these shapes and are faster; `sizes` are the height and the width of the images.

    Milliseconds of CPU time on one core of an EPYC (Zen 4), plain to Winograd's, value and gradient for the images:
    32 × 32² 32→64 5.5 → 5.2, 6.2 → 5.4; 32 × 16² 64→128 5.3 → 4.1, 5.5 → 4.8; 32 × 8² 128→256 5.5 → 3.9, 5.9 → 4.2;
    100 × 8² 128→256 17.3 → 11.3, 17.6 → 12.5; none for 64 × 32² 16→32 (2.9 → 4.0, 4.0 → 5.7). In
    bfloat16, the form of `convolution_rows` to this one: 32 × 32² 32→64 3.9 → 4.3, 5.7 → 3.5; 32 × 16² 64→128 3.5 →
    2.5, 4.3 → 2.4; 32 × 8² 128→256 4.3 → 2.1, 4.0 → 2.3.
    """
    known = images.dtype in (jnp.float32, jnp.bfloat16)
    exists = (*kernel_shape[:2], stride, padding) == (4, 4, 2, 1) and known
    return exists and kernel_shape[2] >= 32 and all(size % 4 == 0 for size in sizes)


def convolve(images, kernel):
    """The convolution: [B, H, W, I] and [4, 4, I, O] to [B, H/2, W/2, O]."""
    batch, height, width, inputs = images.shape
    down, across = height // 4, width // 4
    # The two pixels of a block's row are neighbours in memory: they become channels without being moved.
    rows = _bordered(images).reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2 * inputs)
    columns = lax.optimization_barrier(
        _products_of(*(rows[:, :, :, first : first + 2 * across : 2] for first in range(3)))
    )
    window = []
    for part in columns:
        three = _products_of(*(part[:, first : first + 2 * down : 2] for first in range(3)))
        window.append([flat(jnp.concatenate([block[:, :, 0], block[:, :, 1]], -1)) for block in three])
    # [row of blocks, row, column of blocks, column, I, O]
    blocks = kernel.astype(jnp.float32).reshape(2, 2, 2, 2, inputs, -1)
    kernels = [
        [part.reshape(4 * inputs, -1) for part in _taps_of(*half)]
        for half in _taps_of(blocks[:, :, 0], blocks[:, :, 1])
    ]
    products = matrix_products(window, kernels, images.dtype, contracted=0)
    pairs = [_results_of(*column) for column in products]  # of rows, for each of three columns
    results = [_results_of(*(column[row] for column in pairs)) for row in range(2)]
    tiles = (batch, down, across, -1)
    return joined([[part.reshape(tiles) for part in row] for row in results]).astype(images.dtype)


def images_gradient(outputs, kernel):
    """The gradient for the images: [B, h, w, O] and [4, 4, I, O] to [B, 2h, 2w, I]."""
    batch, height, width, _ = outputs.shape
    down, across, inputs = height // 2, width // 2, kernel.shape[2]
    seen = _bordered(outputs)
    columns = _slopes_seen(*(seen[:, :, first : first + 2 * across - 1 : 2] for first in range(4)))
    columns = lax.optimization_barrier(columns)
    window = [
        [flat(part) for part in _slopes_seen(*(column[:, first : first + 2 * down - 1 : 2] for first in range(4)))]
        for column in columns
    ]
    kernel = kernel.astype(jnp.float32)
    by_column = _taps_met(*(kernel[:, tap] for tap in range(4)))
    by_both = [[_taps_met(*(taps[tap] for tap in range(4))) for taps in column] for column in by_column]
    # A combination that several pixels need is multiplied with the taps of all of them at once.
    kernels = [
        [jnp.concatenate([taps for each in column for taps in each[row]]) for row in range(5)] for column in by_both
    ]
    products = matrix_products(window, kernels, outputs.dtype, contracted=1)
    product = {}
    for column, columns_met in enumerate(_PLACES):
        for row, rows_met in enumerate(_PLACES):
            places = [(*down_, *across_) for across_ in columns_met for down_ in rows_met]
            parts = jnp.split(products[column][row], len(places), -1)
            product |= dict(zip(places, parts, strict=True))
    return _joined(product, (batch, down, across, inputs)).astype(outputs.dtype)


def _bordered(images):
    """In float32, as all sums before and after the products."""
    return lax.pad(images, jnp.zeros((), images.dtype), _BORDER).astype(jnp.float32)


def _joined(product, tiles):
    """The gradient from the products by (pixel down, number, pixel across, number)."""
    pixels = {}
    for row in range(2):
        for column in range(2):
            pairs = [_results_of(*(product[row, number, column, each] for number in range(3))) for each in range(3)]
            for below in range(2):
                two = _results_of(*(pair[below] for pair in pairs))
                for right in range(2):
                    pixels[2 * below + row, 2 * right + column] = two[right].reshape(tiles)
    return joined([[pixels[row, column] for column in range(4)] for row in range(4)])


def _products_of(first, second, third):
    """Of three neighbours, what two results of two taps are made of."""
    return first - second, second, third - second


def _taps_of(first, second):
    """What the three are multiplied with."""
    return first, first + second, second


def _results_of(first, second, third):
    """The two results from the three products."""
    return first + second, second + third


def _slopes_seen(before, first, second, after):
    """Of the outputs 2t - 1 to 2t + 2, what four neighbouring pixels are made of; both kinds of pixel use the third."""
    return before - first, first, second - first, second, after - second


def _taps_met(zeroth, first, second, third):
    """What the five are multiplied with. An even pixel meets taps 3 and 1, an odd one 2 and 0."""
    even, odd = _taps_of(third, first), _taps_of(second, zeroth)
    return (even[0],), (even[1],), (even[2], -odd[0]), (odd[1],), (odd[2],)
