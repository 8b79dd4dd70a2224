"""How the expensive layers are computed on this backend: convolution and pooling, values and gradients.

Networks call these functions and stay readable; only this file knows that XLA:CPU is slow at some of them.
Everything is NHWC, kernels are HWIO, padding is the same on both sides as in PyTorch.

A convolution is bilinear, and so are its two gradients. The three are one family of JAX primitives, each with
its own form on CPU, and the derivative of each is made of the other two: `grad`, `jvp`, `jvp` of `grad` and
`vmap` all stay inside the family. GPU and TPU compile to the one plain operation that XLA has for each.
"""

import functools
import itertools

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp
from jaxtyping import Array, Float

# Feature maps [B, H, W, C]: what comes out may differ from what went in by all but B.
Maps = Float[Array, "batch _ _ _"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Contracted positions (images × height × width) in one piece of a weight gradient: the packed cotangents of
# a piece (4096 × outputs × 4 bytes) stay in a core's second-level cache, and the pieces run side by side.
# Two threads, milliseconds, whole batch against pieces: 64 × 32² 64→64 3×3: 149 → 31; 64 × 32² 16→32 3×3:
# 20 → 4.4; 64 × 16² 128→128 3×3: 87 → 28; 64 × 32² 32→64 4×4 stride 2: 32 → 10; no gain at 8² and below.
_PIECE = 4096
_MOST_PIECES = 16


def convolve(
    images: Maps, kernel: Float[Array, "height width inputs outputs"], *, stride: int = 1, padding: int = 0
) -> Maps:
    """Convolution of `images` [B, H, W, I] with `kernel` [h, w, I, O], zero padding on every side."""
    images, kernel = _varying_alike(images, kernel)
    sizes = images.shape[1:3] + kernel.shape[:2]
    return _bind("value", images[None], kernel[None], stride, padding, sizes)[0]


# --- the three bilinear operations -------------------------------------------------------------------
# Operands and results carry a leading axis of independent copies (a population of networks), usually 1:
# images [V, B, H, W, I], kernel [V, h, w, I, O], outputs [V, B, H', W', O]. Each operation takes two of them
# and gives the third.


def _plain_value(images, kernel, stride, padding, sizes):
    del sizes
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )


def _plain_images(outputs, kernel, stride, padding, sizes):
    pads = []
    for axis in range(2):
        before = sizes[axis + 2] - 1 - padding
        pads.append((before, sizes[axis] + padding - 1 - (outputs.shape[axis + 1] - 1) * stride))
    return lax.conv_general_dilated(
        outputs,
        kernel[::-1, ::-1],
        (1, 1),
        pads,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _plain_kernel(images, outputs, stride, padding, sizes):
    return lax.conv_general_dilated(
        images,
        outputs,
        (1, 1),
        _kernel_padding(images.shape, outputs.shape, stride, padding, sizes),
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


def _cpu_value(images, kernel, stride, padding, sizes):
    del sizes
    return _window(images, kernel, stride, [(padding, padding)] * 2)


def _cpu_images(outputs, kernel, stride, padding, sizes):
    """Gradient for the images: a convolution for each phase of the stride, without the zeros that XLA would insert.

    Pixels `stride · u + phase` meet only the taps `(phase + padding) mod stride + stride · j`.
    """
    height, width, *taps = sizes
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
        bands.append(jnp.stack(band, 3) if stride > 1 else band[0][:, :, :, None])
    result = jnp.stack(bands, 2) if stride > 1 else bands[0][:, :, None]
    result = result.reshape(outputs.shape[0], counts[0] * stride, counts[1] * stride, kernel.shape[2])
    return result[:, :height, :width]


def _window(images, kernel, stride, pads):
    """Convolution with the form that is fastest for these shapes; `pads` are (before, after) for height and width.

    Milliseconds of CPU time, XLA's convolution against the form chosen (3×3, stride 1):
    Winograd: 8 × 32² 128→128: 21.7 → 15.2; 64 × 16² 128→128: 40.8 → 29.8; 64 × 8² 256→256: 46.1 → 35.7;
    16 × 16² 256→256: 45.0 → 26.8; 16 × 32² 64→64: 9.9 → 8.3; no gain with 32 channels (2.7 → 3.2).
    Blocks: 64 × 32² 3→16: 4.2 → 1.2 (4 pixels); 3→32: 6.0 → 1.4 (2 pixels); 3→64 none (3.5 → 4.2);
    16→3: 6.1 → 2.6 (4 pixels); 32→3 none (2.6 → 3.4).
    """
    rows, columns, inputs, outputs = kernel.shape
    across = (images.shape[2] + sum(pads[1]) - columns) // stride + 1
    wide = min(inputs, outputs) >= 64 and across >= 4 and images.dtype == jnp.float32
    if wide and (rows, columns, stride) == (3, 3, 1):
        return _winograd(images, kernel, pads, across)
    pixels = 64 // outputs if inputs <= 4 else 4 if inputs <= 16 and outputs <= 4 else 1
    if columns > 1 and pixels > 1 and across % pixels == 0:
        return _blocks(images, kernel, stride, pads, pixels)
    return lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _blocks(images, kernel, stride, pads, pixels):
    """`pixels` neighbours of a row at once as more output channels: a narrow result leaves vector lanes empty."""
    rows, columns, inputs, outputs = kernel.shape
    shifted = [
        jnp.pad(kernel, ((0, 0), (stride * pixel, stride * (pixels - 1 - pixel)), (0, 0), (0, 0)))
        for pixel in range(pixels)
    ]
    wide = jnp.stack(shifted, 3).reshape(rows, columns + stride * (pixels - 1), inputs, pixels * outputs)
    result = lax.conv_general_dilated(images, wide, (stride, stride * pixels), pads, dimension_numbers=_LAYOUT)
    return result.reshape(*result.shape[:2], -1, outputs)


# Winograd's F(4, 3) along one axis, from the points 0, ±1, ±2 and infinity: 6 products instead of 12 for 4
# neighbouring results (Lavin and Gray, arXiv:1509.09308, section 4.3). Errors are about 4e-6 of the largest value.
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


def _winograd(images, kernel, pads, across):
    """3 × 3 convolution with stride 1 as six 3 × 1 convolutions on combinations of the columns."""
    batch, height, width, inputs = images.shape
    tiles = -(-across // 4)
    before = pads[1][0]
    nothing = (0, 0, 0)
    images = lax.pad(images, 0.0, (nothing, nothing, (before, 4 * (tiles + 1) - width - before, 0), nothing))
    quads = images.reshape(batch, height, tiles + 1, 4, inputs)
    window = [quads[:, :, :tiles, column] for column in range(4)] + [quads[:, :, 1:, column] for column in range(2)]
    # The barriers keep XLA from computing a combination once for every place where it is used.
    window = lax.optimization_barrier([_combine(row, window) for row in _INPUT_TRANSFORM])
    kernels = [_combine(row, [kernel[:, tap, None] for tap in range(3)]) for row in _KERNEL_TRANSFORM]
    products = [
        lax.conv_general_dilated(part, taps, (1, 1), [pads[0], (0, 0)], dimension_numbers=_LAYOUT)
        for part, taps in zip(window, kernels, strict=True)
    ]
    products = lax.optimization_barrier(products)
    result = jnp.stack([_combine(row, products) for row in _OUTPUT_TRANSFORM], 3)
    return result.reshape(batch, -1, 4 * tiles, kernel.shape[3])[:, :, :across]


def _combine(weights, terms):
    """The sum of weight · term without the terms whose weight is 0."""
    parts = [term if weight == 1 else weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return functools.reduce(jnp.add, parts)


def _cpu_kernel(images, outputs, stride, padding, sizes):
    """Gradient for the kernel, summed over pieces of the batch; each piece is a convolution in XLA's own layout."""
    batch = images.shape[0]
    pieces = min(max(1, batch * outputs.shape[1] * outputs.shape[2] // _PIECE), _MOST_PIECES, batch)
    cuts = [batch * piece // pieces for piece in range(pieces + 1)]
    total = jnp.zeros((), images.dtype)
    for start, stop in itertools.pairwise(cuts):
        # Channels as the batch and the batch as channels. Written out, because XLA rearranges such a
        # convolution by itself only outside of loops and runs it about 50 times slower inside.
        gradient = lax.conv_general_dilated(
            images[start:stop].transpose(3, 1, 2, 0),
            outputs[start:stop].transpose(1, 2, 0, 3),
            (1, 1),
            _kernel_padding(images.shape, outputs.shape, stride, padding, sizes),
            rhs_dilation=(stride, stride),
            dimension_numbers=_LAYOUT,
        )
        total = gradient if start == 0 else total + gradient
    return total.transpose(1, 2, 0, 3)


def _kernel_padding(images, outputs, stride, padding, sizes):
    """Padding that leaves exactly the kernel's size; the far side may cut pixels that no kernel reached."""
    return [(padding, (outputs[axis] - 1) * stride + sizes[axis + 1] - images[axis] - padding) for axis in (1, 2)]


# --- the family of primitives ------------------------------------------------------------------------


def _population(operation):
    """`operation` over the leading axis: one after the other where there is a choice, for XLA:CPU runs the
    grouped convolution that `vmap` makes of it 3 to 5 times slower."""

    def on_cpu(first, second, **parameters):
        return jnp.stack([operation(*pair, **parameters) for pair in zip(first, second, strict=True)])

    def elsewhere(first, second, **parameters):
        if first.shape[0] == 1:
            return operation(first[0], second[0], **parameters)[None]
        return jax.vmap(lambda *pair: operation(*pair, **parameters))(first, second)

    return on_cpu, elsewhere


def _bind(name, first, second, stride, padding, sizes):
    return _OPERATIONS[name].bind(first, second, stride=stride, padding=padding, sizes=sizes)


def _batched(name, operands, axes, **parameters):
    """A mapped axis joins the population, or the batch where the kernel is shared."""
    first, second = (
        operand if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    )
    size = first.shape[0] if axes[0] is not None else second.shape[0]
    if name != "kernel" and axes[1] is None and second.shape[0] == 1:
        result = _bind(name, first.reshape(1, -1, *first.shape[3:]), second, **parameters)
        return result.reshape(size, 1, first.shape[2], *result.shape[2:]), 0
    first, second = (
        jnp.broadcast_to(operand[None], (size, *operand.shape)) if axis is None else operand
        for operand, axis in zip((first, second), axes, strict=True)
    )
    copies = first.shape[1]
    first, second = (operand.reshape(-1, *operand.shape[2:]) for operand in (first, second))
    result = _bind(name, first, second, **parameters)
    return result.reshape(size, copies, *result.shape[1:]), 0


# Which operation gives the gradient for the first and for the second operand, and in which order it takes
# the cotangent and the operand that stays.
_DERIVATIVES = {
    "value": (
        lambda cotangent, images, kernel, **parameters: _bind("images", cotangent, kernel, **parameters),
        lambda cotangent, images, kernel, **parameters: _bind("kernel", images, cotangent, **parameters),
    ),
    "images": (
        lambda cotangent, outputs, kernel, **parameters: _bind("value", cotangent, kernel, **parameters),
        lambda cotangent, outputs, kernel, **parameters: _bind("kernel", cotangent, outputs, **parameters),
    ),
    "kernel": (
        lambda cotangent, images, outputs, **parameters: _bind("images", outputs, cotangent, **parameters),
        lambda cotangent, images, outputs, **parameters: _bind("value", images, cotangent, **parameters),
    ),
}


def _primitive(name, plain, on_cpu):
    primitive = Primitive(f"convolution_{name}")
    shared = _population(plain)[1]
    fast = _population(on_cpu)[0]

    @primitive.def_abstract_eval
    def _(first, second, **parameters):
        return jax.make_jaxpr(functools.partial(shared, **parameters))(first, second).out_avals[0]

    @primitive.def_impl
    def _(first, second, **parameters):
        return _compiled(name, first, second, **parameters)

    ad.defbilinear(primitive, *_DERIVATIVES[name])
    batching.primitive_batchers[primitive] = functools.partial(_batched, name)
    mlir.register_lowering(primitive, mlir.lower_fun(shared, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(fast, multiple_results=False), platform="cpu")
    return primitive


_OPERATIONS = {
    "value": _primitive("value", _plain_value, _cpu_value),
    "images": _primitive("images", _plain_images, _cpu_images),
    "kernel": _primitive("kernel", _plain_kernel, _cpu_kernel),
}


@functools.partial(jax.jit, static_argnames=("name", "stride", "padding", "sizes"))
def _compiled(name, first, second, **parameters):
    return _bind(name, first, second, **parameters)


def _varying_alike(*arrays):
    """Inside `shard_map`: marks every array as varying over the axes over which any of them varies."""
    varying = frozenset().union(*(jax.typeof(array).mat.varying for array in arrays))
    return tuple(
        lax.pcast(array, tuple(varying - jax.typeof(array).mat.varying), to="varying")
        if varying - jax.typeof(array).mat.varying
        else array
        for array in arrays
    )


# --- pooling ------------------------------------------------------------------------------------------


def max_pool(images: Maps, window: int) -> Maps:
    """Maximum over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`.

    The gradient goes to the first maximum of a tile in reading order, as in PyTorch.
    """
    # Whole slices and selects: 64 × 32² × 32 takes 0.7 ms of CPU time and 1.7 ms with its gradient; a reduction
    # over axes of tiles takes 1.3 and 7.7, `reduce_window` with select-and-scatter 0.9 and 23.
    largest = images[:, ::window, ::window]
    for row, column in itertools.product(range(window), repeat=2):
        if row or column:
            other = images[:, row::window, column::window]
            largest = jnp.where((other > largest) | jnp.isnan(other), other, largest)
    return largest


def average_pool(images: Maps, window: int) -> Maps:
    """Mean over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.mean((2, 4))


def upsample(images: Maps) -> Maps:
    """Every pixel repeated to a 2 × 2 tile (nearest neighbour)."""
    batch, height, width, channels = images.shape
    tiles = jax.lax.broadcast_in_dim(images, (batch, height, 2, width, 2, channels), (0, 1, 3, 5))
    return tiles.reshape(batch, 2 * height, 2 * width, channels)


# --- statistics --------------------------------------------------------------------------------------


def batch_statistics(images: Maps) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Mean and (biased) variance of every channel over batch, height and width, each [C].

    `variance = mean((x - c)²) - (mean(x) - c)²` with `c` the first pixel: one pass instead of two, and the
    shift keeps the digits that the textbook form with `c = 0` loses where the mean is far from 0.
    """
    shift = lax.stop_gradient(images[0, 0, 0]).reshape(1, 1, 1, -1)
    centred = images - shift
    mean = centred.mean((0, 1, 2))
    variance = jnp.maximum((centred * centred).mean((0, 1, 2)) - mean * mean, 0.0)
    return mean + shift.reshape(-1), variance
