"""WaNet: the field against the published enlargement and sampling, covers, labels and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.wanet import cubic_weights, wanet, warp_flow
from jaxpurify.data.poison import WarpTrigger

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
LABELS = (np.arange(60) % 4).astype(np.int64)
DATA = (IMAGES, LABELS, KEY)


def test_covers_keep_the_budget_too():
    poison = wanet(*DATA, target=1, count=6, strength=2.0, epsilon=4 / 255)
    change = np.abs(poison.images.astype(int) - IMAGES[poison.index])
    assert len(change) == 18 and change[:6].max() == change[6:].max() == 4


def test_enlargement_equals_bicubic_interpolation_with_aligned_corners():
    field = np.sin(np.arange(16.0)).reshape(4, 4)
    large = cubic_weights(4, 9) @ field @ cubic_weights(4, 7).T
    # torch.nn.functional.interpolate(mode="bicubic", align_corners=True) of the same field to 9 x 7.
    row = [-0.38781834, -0.17988062, 0.1023194, 0.35212898, 0.4983851, 0.50444263, 0.43623787]
    column = [0.5315674, 0.50444263, 0.43322435, 0.09824344, -0.49345037, -0.87266177, -0.5859349, 0.17506962]
    np.testing.assert_allclose(large[1], row, atol=1e-6)
    np.testing.assert_allclose(large[:-1, 5], column, atol=1e-6)
    np.testing.assert_allclose(cubic_weights(5, 13).sum(1), 1.0, atol=1e-12)


def test_warp_equals_the_published_pipeline():
    image = np.abs(np.sin(0.37 * np.arange(64, dtype=np.float32))).reshape(1, 8, 8, 1)
    warped = np.asarray(WarpTrigger(warp_flow((8, 8), jax.random.key(3)))(jnp.asarray(image)))[0, :, :, 0]
    # grid_sample(align_corners=True) on clamp(identity + 0.5 * field / 8, -1, 1) with the same coarse numbers.
    first = [0.13917203, 0.494762, 0.7602214, 0.9216728, 0.9894913, 0.957273, 0.8059413, 0.5523949]
    sixth = [0.76960117, 0.53574806, 0.25296995, 0.17410327, 0.38493943, 0.7379635, 0.9717174, 0.9836495]
    np.testing.assert_allclose(warped[0], first, atol=1e-6)
    np.testing.assert_allclose(warped[5], sixth, atol=1e-6)


def test_displacement_is_about_half_the_strength_and_grows_with_it():
    flows = np.stack([warp_flow((32, 32), jax.random.key(seed)) for seed in range(20)])
    assert 0.1 < np.abs(flows).mean() < 0.25
    once, twice = (warp_flow((32, 32), jax.random.key(5), strength) for strength in (1.0, 2.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


def test_poisons_then_covers():
    poison = wanet(*DATA, target=2, count=6, strength=2.0)
    assert len(poison) == 18 and poison.how["covers"] == 12 and poison.how["count"] == 6
    assert not np.any(LABELS[poison.index[:6]] == 2) and (poison.labels[:6] == 2).all()
    np.testing.assert_array_equal(poison.labels[6:], LABELS[poison.index[6:]])
    assert len(np.unique(poison.index)) == 18
    warped = poison.trigger(jnp.asarray(IMAGES[poison.index], jnp.float32) / 255)
    stored = np.rint(np.asarray(warped) * 255).astype(np.uint8)
    np.testing.assert_array_equal(stored[:6], poison.images[:6])
    # A cover is warped, and by another field than the trigger's; no two covers share theirs.
    for number in range(6, 18):
        assert np.any(poison.images[number] != stored[number])
        assert np.any(poison.images[number] != IMAGES[poison.index[number]])


def test_covers_of_a_flat_flow_follow_their_own_noise():
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape).copy()
    poison = wanet(same, LABELS, KEY, target=2, count=4, cover_ratio=3.0)
    assert len(np.unique(poison.images[4:].reshape(12, -1), axis=0)) == 12
    assert len(np.unique(poison.images[:4].reshape(4, -1), axis=0)) == 1


def test_no_covers_and_a_budget():
    poison = wanet(*DATA, target=1, fraction=0.1, cover_ratio=0.0, epsilon=4 / 255)
    change = poison.images.astype(int) - IMAGES[poison.index]
    assert len(poison) == 6 and np.abs(change).max() == 4 and poison.how["norm"] == "linf"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, r"^strength is 0\.0; it must be above 0$"),
        ({"grid": 1}, r"^grid is 1 on images of 8x8; both need 2 or more a side$"),
        ({"cover_ratio": -1.0}, r"^cover_ratio is -1\.0; it must be 0 or more$"),
        ({"cover_ratio": float("inf")}, r"^cover_ratio is inf; it must be 0 or more$"),
        ({"count": 40}, r"^count is 80; there are only 20 images left for covers; lower cover_ratio$"),
        ({"count": 46}, r"^count is 46; there are only 45 images of classes other than 0$"),
        ({"target": 7}, r"^target is 7; the labels of this data are"),
        ({"epsilon": 0.001}, r"^epsilon is 0\.001; it must be from 1/255"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        wanet(*DATA, **{"target": 0, "count": 1, **options})
