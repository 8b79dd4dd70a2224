"""How the expensive layers are computed on this backend: convolution and pooling, values and gradients.

Networks call these functions and stay readable; only this file knows that XLA:CPU is slow at some of them.
Everything is NHWC, kernels are HWIO, padding is the same on both sides as in PyTorch.

A convolution is bilinear, and so are its two gradients. The three are one family of JAX primitives, each with
its own form on CPU, and the derivative of each is made of the other two: `grad`, `jvp`, `jvp` of `grad` and
`vmap` all stay inside the family. GPU and TPU compile to the one plain operation that XLA has for each.
"""

import functools

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
_MOST_PIECES = 32


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
    shape = (outputs.shape[0], *sizes[:2], kernel.shape[2])
    like = jax.ShapeDtypeStruct(shape, outputs.dtype)
    return jax.linear_transpose(lambda images: _plain_value(images, kernel, stride, padding, sizes), like)(outputs)[0]


def _plain_kernel(images, outputs, stride, padding, sizes):
    like = jax.ShapeDtypeStruct((*sizes[2:], images.shape[3], outputs.shape[3]), images.dtype)
    return jax.linear_transpose(lambda kernel: _plain_value(images, kernel, stride, padding, sizes), like)(outputs)[0]


def _cpu_value(images, kernel, stride, padding, sizes):
    return _plain_value(images, kernel, stride, padding, sizes)


def _cpu_images(outputs, kernel, stride, padding, sizes):
    """Gradient for the images as a convolution without dilation: one output channel group a phase of the stride."""
    batch = outputs.shape[0]
    height, width, taps, columns = sizes
    inputs = kernel.shape[2]
    rows_here, columns_here = -(-taps // stride), -(-columns // stride)
    kernel = jnp.pad(kernel, ((0, rows_here * stride - taps), (0, columns_here * stride - columns), (0, 0), (0, 0)))
    phases = kernel.reshape(rows_here, stride, columns_here, stride, inputs, -1)
    phases = phases[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(rows_here, columns_here, -1, stride**2 * inputs)
    if stride == 1:
        pads = [
            (taps - 1 - padding, height + padding - outputs.shape[1]),
            (columns - 1 - padding, width + padding - outputs.shape[2]),
        ]
        return lax.conv_general_dilated(outputs, phases, (1, 1), pads, dimension_numbers=_LAYOUT)
    pads = [(rows_here - 1, rows_here - 1), (columns_here - 1, columns_here - 1)]
    grid = lax.conv_general_dilated(outputs, phases, (1, 1), pads, dimension_numbers=_LAYOUT)
    _, rows, across, _ = grid.shape
    grid = grid.reshape(batch, rows, across, stride, stride, inputs).transpose(0, 1, 3, 2, 4, 5)
    grid = grid.reshape(batch, rows * stride, across * stride, inputs)
    # The grid covers the padded images up to the last position that a kernel reached.
    missing = [(0, max(0, padding + size - have)) for size, have in zip((height, width), grid.shape[1:3], strict=True)]
    grid = jnp.pad(grid, ((0, 0), *missing, (0, 0)))
    return grid[:, padding : padding + height, padding : padding + width]


def _cpu_kernel(images, outputs, stride, padding, sizes):
    """Gradient for the kernel, summed over pieces of the batch; each piece is a convolution in XLA's own layout."""
    batch = images.shape[0]
    pieces = min(max(1, batch * outputs.shape[1] * outputs.shape[2] // _PIECE), _MOST_PIECES, batch)
    cuts = [batch * piece // pieces for piece in range(pieces + 1)]
    total = None
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
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
        total = gradient if total is None else total + gradient
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
    """Maximum over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.max((2, 4))


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
