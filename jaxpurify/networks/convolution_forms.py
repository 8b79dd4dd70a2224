"""The forms of a convolution and of its two gradients that are fast on XLA:CPU, chosen by shape from measurements.

`sizes` is (image height, image width, kernel height, kernel width) everywhere. Images and outputs are NHWC, kernels
HWIO. Milliseconds in comments are of two cores with AVX-512 (Sapphire Rapids), jax 0.10.2.
"""

import itertools
import math

from jax import lax
import jax.numpy as jnp

from jaxpurify.networks import convolution_rows, winograd, winograd_bfloat16, winograd_strided

LAYOUT = ("NHWC", "HWIO", "NHWC")

# Contracted positions (images × height × width) in one piece of a weight gradient: the packed cotangents of
# a piece (at most 2¹⁹ numbers) stay in a core's second-level cache, and the pieces run side by side.
# Two threads, milliseconds, whole batch against pieces: 64 × 32² 64→64 3×3: 149 → 31; 64 × 32² 16→32 3×3:
# 20 → 4.4; 64 × 16² 128→128 3×3: 87 → 28; 64 × 32² 32→64 4×4 stride 2: 32 → 10; no gain at 8² and below.
# 128 × 7² 256→256 3×3 on one thread: 101 whole, 78 in three pieces.
_PIECE = 4096
_PIECE_VALUES = 2**19
_MOST_PIECES = 16


def cpu_value(images, kernel, stride, padding, sizes):
    """The convolution itself."""
    if winograd_strided.fits(images, kernel.shape, stride, padding, sizes[:2]):
        return winograd_strided.convolve(images, kernel)
    return _window(images, kernel, stride, [(padding, padding)] * 2)


def cpu_images(outputs, kernel, stride, padding, sizes):
    """Gradient for the images: a convolution for each phase of the stride, without the zeros that XLA would insert.

    Pixels `stride · u + phase` meet only the taps `(phase + padding) mod stride + stride · j`.
    """
    height, width, *taps = sizes
    if winograd_strided.fits(outputs, kernel.shape, stride, padding, sizes[:2]):
        return winograd_strided.images_gradient(outputs, kernel)
    if winograd.fits(outputs, kernel.shape, stride, width):
        return winograd.convolve(outputs, kernel, [(2 - padding, 2 - padding)] * 2, width, reverse=True)
    if winograd_bfloat16.fits(outputs, kernel.shape, stride):
        return winograd_bfloat16.convolve(outputs, kernel, [(2 - padding, 2 - padding)] * 2, reverse=True)
    counts = [-(-height // stride), -(-width // stride)]
    bands = []
    for row in range(stride):
        band = []
        for column in range(stride):
            pads, firsts = [], []
            for axis, phase in enumerate((row, column)):
                first = (phase + padding) % stride
                shift = (phase + padding - first) // stride
                reach = max(1, -(-(taps[axis] - first) // stride))
                pads.append((reach - 1 - shift, counts[axis] - outputs.shape[axis + 1] + shift))
                firsts.append(first)
            part = kernel[firsts[0] :: stride, firsts[1] :: stride][::-1, ::-1].transpose(0, 1, 3, 2)
            if part.size:
                band.append(_window(outputs, part, 1, pads))
            else:
                band.append(jnp.zeros((outputs.shape[0], *counts, kernel.shape[2]), outputs.dtype))
        bands.append(band)
    return winograd.joined(bands)[:, :height, :width]


def _window(images, kernel, stride, pads):
    """Convolution with the form that is fastest for these shapes; `pads` are (before, after) for height and width.

    Milliseconds of CPU time, XLA's convolution against the form chosen (3×3, stride 1):
    Winograd across the rows: 8 × 32² 128→128: 21.7 → 15.2; 64 × 16² 128→128: 40.8 → 29.8; 64 × 8² 256→256: 46.1 →
    28.9; 16 × 32² 64→64: 9.9 → 8.3; none for 16 × 32² 32→32 (2.7 → 3.2). Further figures stand in `winograd.py`.
    Blocks: 64 × 32² 3→16: 4.2 → 1.2 (4 pixels); 3→32: 6.0 → 1.4 (2 pixels); 3→64 none (3.5 → 4.2);
    16→3: 6.1 → 2.6 (4 pixels); 32→3 none (2.6 → 3.4).
    Patches: 32 × 2² 128→128: 7.5 → 0.3; 32 × 1² 128→128: 0.33 → 0.07; 32 × 4² 128→128 none (1.15 → 1.32).
    """
    if winograd_bfloat16.fits(images, kernel.shape, stride):
        return winograd_bfloat16.convolve(images, kernel, pads)
    if images.dtype == jnp.bfloat16:
        if convolution_rows.fits(images, kernel):
            return convolution_rows.convolve_rows(images, kernel, stride, pads)
        wide = _window(images.astype(jnp.float32), kernel.astype(jnp.float32), stride, pads)
        return wide.astype(images.dtype)
    rows, columns, inputs, outputs = kernel.shape
    # XLA takes images that are smaller than the kernel for the kernel, and has no fast form for that.
    if images.shape[1] * images.shape[2] < rows * columns:
        return _patches(images, kernel, stride, pads)
    across = (images.shape[2] + sum(pads[1]) - columns) // stride + 1
    if winograd.fits(images, kernel.shape, stride, across):
        return winograd.convolve(images, kernel, pads, across)
    pixels = 64 // outputs if inputs <= 4 else 4 if inputs <= 16 and outputs <= 4 else 1
    if columns > 1 and pixels > 1 and across % pixels == 0:
        return _blocks(images, kernel, stride, pads, pixels)
    return lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=LAYOUT)


def _patches(images, kernel, stride, pads):
    """One matrix product: the pixels that each result sees, side by side, with the kernel."""
    rows, columns, inputs, outputs = kernel.shape
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)])
    high, wide = ((padded.shape[axis + 1] - kernel.shape[axis]) // stride + 1 for axis in range(2))
    near = [
        padded[:, row : row + stride * (high - 1) + 1 : stride, column : column + stride * (wide - 1) + 1 : stride]
        for row, column in itertools.product(range(rows), range(columns))
    ]
    patches = jnp.concatenate(near, -1).reshape(-1, rows * columns * inputs)
    return (patches @ kernel.reshape(-1, outputs)).reshape(-1, high, wide, outputs)


def _blocks(images, kernel, stride, pads, pixels):
    """`pixels` neighbours of a row at once as more output channels: a narrow result leaves vector lanes empty."""
    rows, columns, inputs, outputs = kernel.shape
    shifted = [
        jnp.pad(kernel, ((0, 0), (stride * pixel, stride * (pixels - 1 - pixel)), (0, 0), (0, 0)))
        for pixel in range(pixels)
    ]
    wide = jnp.stack(shifted, 3).reshape(rows, columns + stride * (pixels - 1), inputs, pixels * outputs)
    result = lax.conv_general_dilated(images, wide, (stride, stride * pixels), pads, dimension_numbers=LAYOUT)
    return result.reshape(*result.shape[:2], -1, outputs)


def cpu_kernel(images, outputs, stride, padding, sizes):
    """Gradient for the kernel, summed over pieces of the batch; each piece is a convolution in XLA's own layout.

    Winograd's form where it is faster, milliseconds on one core of an EPYC (Zen 4): 64 × 16² 128→128 55.7 → 29.4; 64 ×
    8² 256→256 52.6 → 23.7; 64 × 4² 512→512 51.1 → 23.5; 64 × 16² 64→64 15.2 → 11.0; 128 × 16² 32→64 15.9 → 14.1; none
    for 128 × 16² 32→32 (8.5 → 9.4), nor on a Xeon for 64 × 32² 64→64.
    """
    channels, across = (images.shape[3], outputs.shape[3]), outputs.shape[2]
    least = 32 * 64 if across <= 16 else 64 * 128
    if winograd.fits(images, (*sizes[2:], *channels), stride, across) and math.prod(channels) >= least:
        return winograd.kernel_gradient(images, outputs, padding)
    if math.prod(sizes[2:]) == 1 or (stride > 1 and math.prod(channels) >= 64 * 128):
        return _kernel_by_taps(images, outputs, stride, padding, sizes)
    batch = images.shape[0]
    positions = batch * outputs.shape[1] * outputs.shape[2]
    size = max(1, min(_PIECE, _PIECE_VALUES // outputs.shape[3]))
    pieces = min(max(1, positions // size), _MOST_PIECES, batch)
    cuts = [batch * piece // pieces for piece in range(pieces + 1)]
    total = jnp.zeros((), images.dtype)
    for start, stop in itertools.pairwise(cuts):
        # Channels as the batch and the batch as channels. Written out, because XLA rearranges such a
        # convolution by itself only outside of loops and runs it about 50 times slower inside.
        gradient = lax.conv_general_dilated(
            images[start:stop].transpose(3, 1, 2, 0),
            outputs[start:stop].transpose(1, 2, 0, 3),
            (1, 1),
            kernel_padding(images.shape, outputs.shape, stride, padding, sizes),
            rhs_dilation=(stride, stride),
            dimension_numbers=LAYOUT,
        )
        total = gradient if start == 0 else total + gradient
    return total.transpose(1, 2, 0, 3)


def _kernel_by_taps(images, outputs, stride, padding, sizes):
    """One matrix product for each tap, contracted over the positions.

    Milliseconds of CPU time of 64 images, in pieces against by taps: 3×3 stride 2: 32² 64→128: 60 → 42; 16² 128→256:
    42 → 24; 32² 32→64 none (11 → 13); 1×1 stride 2: 32² 64→128: 44 → 3.7; 1×1: 16² 32→64: 2.3 → 0.9.
    """
    (_, high, wide, last), taps = outputs.shape, sizes[2:]
    pads = kernel_padding(images.shape, outputs.shape, stride, padding, sizes)
    images = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)])
    outputs = outputs.reshape(-1, last)
    products = [
        images[:, row : row + stride * high : stride, column : column + stride * wide : stride]
        .reshape(-1, images.shape[3])
        .T
        @ outputs
        for row, column in itertools.product(*map(range, taps))
    ]
    return jnp.stack(products).reshape(*taps, images.shape[3], last)


def kernel_padding(images, outputs, stride, padding, sizes):
    """Padding that leaves exactly the kernel's size; the far side may cut pixels that no kernel reached."""
    return [(padding, (outputs[axis] - 1) * stride + sizes[axis + 1] - images[axis] - padding) for axis in (1, 2)]
