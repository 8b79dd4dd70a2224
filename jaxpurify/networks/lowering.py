"""How the expensive layers are computed on this backend: convolution and pooling, values and gradients.

Networks call these functions and stay readable; only this file and `convolution_forms.py`, which chooses between the
forms of a convolution (some in `convolution_rows.py`, `winograd.py` and `winograd_strided.py`), know that XLA:CPU is
slow at some.
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

from jaxpurify.networks.convolution_forms import LAYOUT, cpu_images, cpu_kernel, cpu_value, kernel_padding

# Feature maps [B, H, W, C]: what comes out may differ from what went in by all but B.
Maps = Float[Array, "batch _ _ _"]


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
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=LAYOUT
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
        kernel_padding(images.shape, outputs.shape, stride, padding, sizes),
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


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
    "value": _primitive("value", _plain_value, cpu_value),
    "images": _primitive("images", _plain_images, cpu_images),
    "kernel": _primitive("kernel", _plain_kernel, cpu_kernel),
}


@functools.partial(jax.jit, static_argnames=("name", "stride", "padding", "sizes"))
def _compiled(name, first, second, **parameters):
    return _bind(name, first, second, **parameters)


def _varying_alike(*arrays):
    """Inside `shard_map`: marks every array as varying over the axes over which any of them varies."""
    varying = frozenset().union(*map(axes_of, arrays))
    missing = [tuple(varying.difference(axes_of(array))) for array in arrays]
    return tuple(
        lax.pcast(array, axes, to="varying") if axes else array for array, axes in zip(arrays, missing, strict=True)
    )


def axes_of(array: Array) -> tuple[str, ...]:
    """Inside `shard_map`: the mesh axes over which `array` differs from device to device; else none."""
    return tuple(sorted(jax.typeof(array).mat.varying))


# --- pooling ------------------------------------------------------------------------------------------


def max_pool(images: Maps, window: int) -> Maps:
    """Maximum over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`.

    The gradient goes to the first maximum of a tile in reading order, as in PyTorch.
    """
    # Whole slices and selects: 64 × 32² × 32 takes 0.7 ms of CPU time and 1.7 ms with its gradient; a reduction
    # over axes of tiles takes 1.3 and 7.7, `reduce_window` with select-and-scatter 0.9 and 23.
    # In bfloat16 the comparisons are of float32 numbers: XLA:CPU is slow at those of bfloat16.
    kept, images = images.dtype, images.astype(jnp.promote_types(images.dtype, jnp.float32))
    largest = images[:, ::window, ::window]
    for row, column in itertools.product(range(window), repeat=2):
        if row or column:
            other = images[:, row::window, column::window]
            largest = jnp.where((other > largest) | jnp.isnan(other), other, largest)
    return largest.astype(kept)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def average_pool(images: Maps, window: int) -> Maps:
    """Mean over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`."""
    # Whole slices, as above. The derivative is that of a reduction over axes of tiles, for its gradient is a broadcast,
    # that of slices a sum of padded maps. A Langevin step of 8 images on the residual energy with 32 features in
    # bfloat16 takes 5.0 ms so on one core of an EPYC (Zen 4), 5.8 with the reduction, 5.9 with the gradient of slices.
    kept, images = images.dtype, images.astype(jnp.promote_types(images.dtype, jnp.float32))
    places = itertools.product(range(window), repeat=2)
    total = functools.reduce(jnp.add, (images[:, row::window, column::window] for row, column in places))
    return (total / window**2).astype(kept)


@average_pool.defjvp
def _average_pool_tangent(window, primals, tangents):
    batch, height, width, channels = tangents[0].shape
    tiles = tangents[0].reshape(batch, height // window, window, width // window, window, channels)
    return average_pool(*primals, window), tiles.mean((2, 4))


def upsample(images: Maps) -> Maps:
    """Every pixel repeated to a 2 × 2 tile (nearest neighbour)."""
    batch, height, width, channels = images.shape
    tiles = jax.lax.broadcast_in_dim(images, (batch, height, 2, width, 2, channels), (0, 1, 3, 5))
    return tiles.reshape(batch, 2 * height, 2 * width, channels)
