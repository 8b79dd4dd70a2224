"""Every form of convolution and pooling against XLA's plain operation: values, gradients, and gradients of those."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from jaxpurify.networks import lowering
from jaxpurify.sharding import data_mesh, shard

# images [B, H, W, I], kernel size, outputs, stride, padding
SHAPES = {
    "narrow inputs, four pixels at once": ((2, 8, 8, 3), 3, 16, 1, 1),
    "narrow inputs with stride": ((2, 11, 12, 3), 7, 16, 2, 3),
    "narrow outputs": ((2, 8, 8, 16), 3, 3, 1, 1),
    "plain": ((2, 7, 9, 20), 3, 24, 1, 1),
    "one by one with stride": ((2, 7, 7, 5), 1, 6, 2, 0),
    "three by three with stride, odd": ((3, 7, 9, 5), 3, 6, 2, 1),
    "four by four with stride": ((2, 8, 8, 6), 4, 7, 2, 1),
    "last pixels unused": ((2, 10, 11, 6), 3, 5, 3, 0),
    "kernel smaller than stride": ((2, 10, 10, 5), 2, 6, 3, 0),
    "kernel as large as the image": ((2, 4, 4, 20), 4, 1, 1, 0),
    "padding wider than the kernel's reach": ((2, 7, 7, 5), 3, 6, 1, 3),
    "smaller than the kernel": ((3, 2, 2, 6), 3, 7, 1, 1),
    "smaller than the kernel, with stride": ((3, 3, 2, 6), 4, 7, 2, 2),
    "winograd": ((2, 8, 8, 64), 3, 64, 1, 1),
    "winograd, odd, no padding": ((2, 9, 11, 64), 3, 70, 1, 0),
    "winograd, padding wider than the kernel's reach": ((1, 5, 6, 64), 3, 64, 1, 3),
    "winograd, both ways, weight gradient": ((2, 7, 9, 64), 3, 128, 1, 1),
    "winograd, both ways, no padding": ((2, 6, 8, 128), 3, 64, 1, 0),
    "winograd, both ways, padding wider than the kernel's reach": ((1, 5, 6, 128), 3, 128, 1, 3),
    "winograd, both ways, one row": ((2, 1, 4, 64), 3, 128, 1, 1),
    "winograd, few channels": ((2, 6, 16, 32), 3, 33, 1, 1),
    "by taps, cut on the far side": ((2, 8, 9, 64), 3, 128, 2, 1),
    "winograd, many channels": ((2, 4, 5, 256), 3, 257, 1, 1),
    "winograd, strided": ((2, 8, 12, 32), 4, 36, 2, 1),
    "winograd, strided, one tile": ((3, 4, 4, 32), 4, 33, 2, 1),
    "strided, no whole tiles": ((2, 8, 6, 32), 4, 33, 2, 1),
    "several pieces of the batch": ((9, 32, 32, 5), 3, 6, 1, 1),
    "several pieces with stride": ((33, 33, 33, 2), 4, 3, 2, 1),
}
# Reverse over reverse runs the same three operations as forward over reverse; the longest to compile.
REVERSED_TWICE = ("three by three with stride, odd", "winograd", "winograd, strided")


def plain(images, kernel, *, stride, padding):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(name):
    shape, size, outputs, stride, padding = SHAPES[name]
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(keys[0], shape)
    # Outputs of unit size: the sine in the losses would magnify the rounding of large ones.
    kernel = jax.random.normal(keys[1], (size, size, shape[3], outputs)) / (size * shape[3] ** 0.5)
    directions = jax.random.normal(keys[2], images.shape), jax.random.normal(keys[3], kernel.shape)
    return (images, kernel), directions, {"stride": stride, "padding": padding}


def gradients(convolve, sizes):
    """The gradient of a loss that is not linear in the images nor in the kernel."""
    return jax.grad(lambda images, kernel: jnp.sin(convolve(images, kernel, **sizes)).mean(), (0, 1))


def assert_close(tree, expected):
    """Within 1e-5 of the largest expected value, leaf by leaf."""
    for got, want in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("name", SHAPES)
def test_values_gradients_and_their_derivatives_are_those_of_the_plain_convolution(name):
    primals, directions, sizes = operands(name)

    def everything(convolve):
        gradient = gradients(convolve, sizes)

        def along(images, kernel):
            return sum(jnp.vdot(*pair) for pair in zip(gradient(images, kernel), directions, strict=True))

        def run(images, kernel):
            value = convolve(images, kernel, **sizes)
            forward_over_reverse = jax.jvp(gradient, (images, kernel), directions)
            twice = jax.grad(along, (0, 1))(images, kernel) if name in REVERSED_TWICE else ()
            return value, forward_over_reverse, twice

        return jax.jit(run)(*primals)

    assert_close(everything(lowering.convolve), everything(plain))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_mapped_over_images_or_kernels(axes):
    (images, kernel), _, sizes = operands("three by three with stride, odd")
    images, kernel = (
        operand if axis is None else jnp.stack([operand, 1 - 2 * operand, operand / 3])
        for operand, axis in zip((images, kernel), axes, strict=True)
    )

    def mapped(convolve):
        return jax.jit(jax.vmap(gradients(convolve, sizes), axes))(images, kernel)

    assert_close(mapped(lowering.convolve), mapped(plain))


def test_mapped_twice_and_over_cotangents():
    (images, kernel), _, sizes = operands("three by three with stride, odd")
    grid = jnp.stack([jnp.stack([kernel, -kernel, 2 * kernel]), jnp.stack([kernel + 1, kernel - 1, kernel / 2])])

    def run(convolve):
        mapped = jax.vmap(jax.vmap(gradients(convolve, sizes), (None, 0)), (None, 0))
        rows = jax.jacrev(lambda kernel: convolve(images[:1], kernel, **sizes)[0, :2, 0, 0])
        return jax.jit(lambda images, grid: (mapped(images, grid), rows(grid[0, 0])))(images, grid)

    assert_close(run(lowering.convolve), run(plain))


def test_inside_scan():
    (images, kernel), _, sizes = operands("winograd")

    def run(convolve):
        def step(carry, _):
            return jax.tree.map(lambda value, slope: value - slope, carry, gradients(convolve, sizes)(*carry)), None

        return lax.scan(step, (images, kernel), None, length=2)[0]

    assert_close(run(lowering.convolve), run(plain))


def test_weight_gradients_inside_scan_keep_the_layout_that_is_fast():
    (images, kernel), _, sizes = operands("plain")

    def step(kernel, _):
        return kernel - gradients(lowering.convolve, sizes)(images, kernel)[1], None

    text = jax.jit(lambda kernel: lax.scan(step, kernel, None, length=3)[0]).lower(kernel).compile().as_text()
    labels = {part.split(",")[0].split()[0] for part in text.split("dim_labels=")[1:]}
    assert labels == {"b01f_01io->b01f"}


def test_sharded_over_devices_by_jit_and_by_shard_map():
    (images, kernel), _, sizes = operands("three by three with stride, odd")
    images = jnp.concatenate([images, -images, images + 1, images / 2])
    mesh = data_mesh()

    def loss(images, kernel):
        return jnp.sin(lowering.convolve(images, kernel, **sizes)).sum()

    expected = jax.grad(loss, (0, 1))(images, kernel)
    assert_close(jax.jit(jax.grad(loss, (0, 1)))(shard(mesh, images), kernel), expected)
    specs = (PartitionSpec(("replica", "data")), PartitionSpec())
    # The gradient for a kernel that every device shares is summed over the devices.
    mapped = jax.shard_map(jax.grad(loss, (0, 1)), mesh=mesh, in_specs=specs, out_specs=specs)
    assert_close(jax.jit(mapped)(images, kernel), expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_backends_get_one_plain_convolution(platform):
    (images, kernel), _, sizes = operands("winograd")
    program = jax.jit(gradients(lowering.convolve, sizes))
    exported = jax.export.export(program, platforms=[platform])(images, kernel)
    text = exported.mlir_module()
    assert text.count("stablehlo.convolution") == 3 and "optimization_barrier" not in text


@pytest.mark.parametrize(
    ("shape", "size", "outputs", "stride", "padding"),
    [
        ((2, 7, 9, 20), 3, 24, 1, 1),
        ((2, 7, 9, 17), 3, 24, 1, 1),
        ((2, 7, 7, 16), 1, 6, 2, 0),
        ((3, 7, 9, 16), 3, 18, 2, 1),
        ((2, 6, 8, 32), 4, 16, 2, 1),
        ((2, 10, 11, 16), 3, 5, 3, 0),
        ((2, 10, 10, 16), 2, 16, 3, 0),
        ((2, 7, 7, 16), 3, 16, 1, 3),
        ((2, 4, 4, 20), 4, 1, 1, 0),
    ],
)
def test_half_precision_keeps_its_type_and_sums_in_single_precision(shape, size, outputs, stride, padding):
    check_half_precision(shape, size, outputs, {"stride": stride, "padding": padding}, roundings=1)


@pytest.mark.parametrize(
    ("shape", "size", "outputs", "stride", "padding"),
    [
        ((2, 8, 8, 64), 3, 64, 1, 1),
        ((2, 7, 9, 32), 3, 40, 1, 1),
        ((2, 7, 8, 40), 3, 32, 1, 0),
        ((2, 5, 4, 32), 3, 32, 1, 2),
        ((2, 8, 8, 32), 4, 16, 2, 1),
        ((3, 12, 8, 64), 4, 32, 2, 1),
    ],
)
def test_winograd_in_half_precision_rounds_once_more(shape, size, outputs, stride, padding):
    forms = jax.jit(lambda images, kernel: lowering.convolve(images, kernel, stride=stride, padding=padding))
    operands = [jax.ShapeDtypeStruct(sides, jnp.bfloat16) for sides in (shape, (size, size, shape[3], outputs))]
    text = forms.lower(*operands).as_text()
    assert "stablehlo.convolution" not in text and "stablehlo.dot_general" in text
    check_half_precision(shape, size, outputs, {"stride": stride, "padding": padding}, roundings=2)


def check_half_precision(shape, size, outputs, sizes, roundings):
    """Value and gradients in bfloat16 against the plain form of float32 numbers."""
    images = jax.random.normal(jax.random.key(0), shape).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (size, size, shape[3], outputs)).astype(jnp.bfloat16)
    out = jax.eval_shape(lambda images, kernel: plain(images, kernel, **sizes), images, kernel)
    cotangent = jax.random.normal(jax.random.key(2), out.shape).astype(jnp.bfloat16)

    def run(convolve, *operands):
        value, pullback = jax.vjp(lambda images, kernel: convolve(images, kernel, **sizes), *operands[:2])
        return value, *pullback(operands[2])

    exact = run(plain, *(operand.astype(jnp.float32) for operand in (images, kernel, cotangent)))
    for got, want in zip(run(lowering.convolve, images, kernel, cotangent), exact, strict=True):
        assert got.dtype == jnp.bfloat16
        # A rounding is 8 bits of the largest value.
        close = roundings * 2**-8 * float(jnp.abs(want).max())
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0, atol=close)


@pytest.mark.parametrize("window", [2, 4])
def test_max_pool_sends_the_gradient_to_the_first_maximum(window):
    torch = pytest.importorskip("torch")
    images = np.asarray(jax.random.randint(jax.random.key(3), (2, 8, 12, 5), 0, 4), np.float32)
    weights = np.asarray(jax.random.normal(jax.random.key(4), (2, 8 // window, 12 // window, 5)))
    leaf = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(leaf, window)
    (pooled * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    value, pullback = jax.vjp(lambda images: lowering.max_pool(images, window), jnp.asarray(images))
    np.testing.assert_array_equal(value, pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(pullback(jnp.asarray(weights))[0], leaf.grad.numpy().transpose(0, 2, 3, 1))


def test_max_pool_passes_not_a_number_on():
    images = jnp.ones((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan).at[0, 3, 3, 0].set(jnp.nan)
    np.testing.assert_array_equal(jnp.isnan(lowering.max_pool(images, 2))[0, :, :, 0], [[True, False], [False, True]])


@pytest.mark.parametrize("window", [1, 2, 3])
def test_average_pool_is_the_mean_with_all_its_derivatives(window):
    def plain(images):
        tiles = images.reshape(2, 6 // window, window, 12 // window, window, 3)
        return tiles.mean((2, 4))

    images, direction = jax.random.normal(jax.random.key(5), (2, 2, 6, 12, 3))

    def results(pool):
        def curved(images):
            return (pool(images) ** 3).sum()

        forward = jax.jvp(pool, (images,), (direction,))
        return *forward, jax.grad(curved)(images), jax.jvp(jax.grad(curved), (images,), (direction,))[1]

    for found, expected in zip(
        results(lambda images: lowering.average_pool(images, window)), results(plain), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    rough = lowering.average_pool(images.astype(jnp.bfloat16), window)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), plain(images), atol=0.02)


def test_average_pool_and_upsample():
    images = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(lowering.average_pool(images, 2)[0, 0, 0], images[0, :2, :2].mean((0, 1)))
    np.testing.assert_array_equal(lowering.average_pool(lowering.upsample(images), 2), images)
