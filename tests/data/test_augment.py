"""Augmentations: exact on simple cases, independent of the batch, differentiable, and not retraced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import Compose, Cutout, Flip, PadCrop, Shift
from jaxpurify.data.augment import shift
from jaxpurify.random import image_keys
from jaxpurify.sharding import data_mesh

STAGES = [
    Flip(),
    PadCrop(),
    PadCrop(padding=2, mode="reflect"),
    Cutout(size=5),
    Shift(pixels=2, mode="edge"),
    Compose((Flip(), PadCrop(padding=3), Cutout(size=3))),
]


def test_shifts_go_both_ways():
    ramp = jnp.broadcast_to(jnp.arange(9.0).reshape(1, 1, 9, 1) / 9, (300, 9, 9, 1))
    moved = Shift(pixels=2, mode="edge")(image_keys(jax.random.key(0), jnp.arange(300)), ramp)
    middle = 9 * np.asarray(moved)[:, 4, 4, 0] - 4
    assert -2 <= middle.min() < -1.9 and 1.9 < middle.max() <= 2 and abs(middle.mean()) < 0.3


def batch(count=24, height=12, width=10, channels=3, rows=slice(None)):
    """Images and fresh keys for them, as the checker against reused keys wants them for every call."""
    pixels = np.random.default_rng(0).uniform(size=(count, height, width, channels))[rows]
    keys = image_keys(jax.random.key(3), jnp.arange(count)[rows])
    return keys, jnp.asarray(pixels, jnp.float32)


def test_cutout_fills_with_a_colour():
    keys, images = batch(count=4)
    colour = np.arange(2, 2 + images.shape[-1], dtype=np.float32)
    filled = np.asarray(Cutout(size=3, fill=colour)(keys, images))
    inside = filled[..., 0] == 2
    assert inside.any() and (filled[inside] == colour).all() and (filled[~inside] == np.asarray(images)[~inside]).all()


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_every_stage_keeps_shape_range_and_does_not_depend_on_the_batch(stage):
    keys, images = batch()
    apply = jax.jit(stage)
    augmented = np.asarray(apply(keys, images))
    assert augmented.shape == images.shape and augmented.dtype == images.dtype
    assert augmented.min() >= 0.0 and augmented.max() <= 1.0
    np.testing.assert_array_equal(augmented, apply(*batch()))
    rows = slice(5, 12)
    np.testing.assert_array_equal(jax.jit(stage)(*batch(rows=rows)), augmented[rows])


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_every_stage_is_affine_in_the_images_and_has_their_gradient(stage):
    images = batch(count=3)[1]
    weights, step = np.random.default_rng(1).normal(size=(2, *images.shape)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def augmented(images):
        return (weights * stage(batch(count=3)[0], images)).sum()

    value, gradient = augmented(images)
    change = augmented(images + step)[0] - value
    np.testing.assert_allclose((gradient * step).sum(), change, rtol=1e-3, atol=1e-3)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    keys, images = batch(count=400, height=2, width=3)
    flipped = np.asarray(Flip()(keys, images))
    same = (flipped == np.asarray(images)).all((1, 2, 3))
    mirrored = (flipped == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("mode", ["zero", "reflect", "edge"])
def test_pad_crop_gives_each_of_the_crops_of_the_padded_image(mode):
    keys, images = batch(count=300, height=5, width=6, channels=1)
    images = jnp.broadcast_to(images[:1], images.shape)
    cropped = np.asarray(PadCrop(padding=2, mode=mode)(keys, images))
    numpy_mode = {"zero": "constant"}.get(mode, mode)
    padded = np.pad(np.asarray(images[0, :, :, 0]), 2, mode=numpy_mode)
    expected = {padded[row : row + 5, column : column + 6].tobytes() for row in range(5) for column in range(5)}
    assert {image[:, :, 0].tobytes() for image in cropped} == expected


def test_cutout_fills_one_square_anywhere():
    keys, images = batch(count=500, height=6, width=7)
    filled = np.asarray(Cutout(size=3, fill=2.0)(keys, images)) == 2.0
    assert (filled == filled[..., :1]).all()
    hit = filled[..., 0]
    rows, columns = hit.any(2), hit.any(1)
    np.testing.assert_array_equal(hit, rows[:, :, None] & columns[:, None, :])
    assert hit.sum((1, 2)).max() == 9
    assert hit.sum((1, 2)).min() == 4  # a centre in a corner
    assert hit.any(0).all()


def test_shift_by_whole_and_half_pixels():
    image = jnp.arange(12.0).reshape(1, 3, 4, 1) / 12
    two = jnp.concatenate([image, image, image])
    moves = jnp.array([[1.0, -1.0], [0.0, 0.0], [0.5, 0.25]])
    moved = np.asarray(shift(two, moves, pixels=1))[..., 0] * 12
    np.testing.assert_allclose(moved[0], [[0, 4, 5, 6], [0, 8, 9, 10], [0, 0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(moved[1], np.arange(12.0).reshape(3, 4), atol=1e-5)
    np.testing.assert_allclose(moved[2, 0, 0], 2 + 0.25, atol=1e-5)
    np.testing.assert_allclose(moved[2, 2, 3], 11 * 0.5 * 0.75, atol=1e-5)
    edge = np.asarray(shift(two, moves, pixels=1, mode="edge"))[..., 0] * 12
    np.testing.assert_allclose(edge[0], [[4, 4, 5, 6], [8, 8, 9, 10], [8, 8, 9, 10]], atol=1e-5)


def test_shift_at_its_limits_stays_inside_of_the_padding():
    image = jnp.ones((2, 4, 4, 1))
    moved = np.asarray(shift(image, jnp.array([[2.0, -2.0], [-2.0, 2.0]]), pixels=2))[..., 0]
    np.testing.assert_array_equal(moved[0], np.outer([1, 1, 0, 0], [0, 0, 1, 1]))
    np.testing.assert_array_equal(moved[1], np.outer([0, 0, 1, 1], [1, 1, 0, 0]))


def test_stages_of_a_composition_draw_independent_numbers():
    keys, images = batch(count=200, height=2, width=2)
    twice = np.asarray(Compose((Flip(), Flip()))(keys, images))
    changed = (twice != np.asarray(images)).any((1, 2, 3)).mean()
    assert 0.3 < changed < 0.7


def test_other_keys_and_values_do_not_retrace():
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(lambda stage, keys, images: stage(keys, images), n=1))
    for fill in (0.0, 0.25):
        apply(Compose((PadCrop(), Cutout(size=3, fill=fill))), *batch(count=4))


def test_a_sharded_batch_is_augmented_without_communication():
    mesh = data_mesh()
    stage = Compose((Flip(), PadCrop(), Cutout(size=3), Shift()))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    sharded = jax.device_put(batch(count=8), rows)
    compiled = jax.jit(stage).lower(*sharded).compile()
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(compiled(*sharded), jax.jit(stage)(*batch(count=8)), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PadCrop(padding=-1), "padding is -1"),
        (lambda: PadCrop(mode="wrap"), "mode is 'wrap'; it must be one of zero, reflect, edge"),
        (lambda: Cutout(size=0), "size is 0"),
        (lambda: Shift(pixels=-2), "pixels is -2"),
        (lambda: Shift(mode="x"), "mode is 'x'"),
        (lambda: PadCrop(padding=4, mode="reflect")(*batch(height=4)), "too small to be reflected by 4"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
