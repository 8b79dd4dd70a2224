"""SIG: the signal in whole levels, the budget, labels, and strength at test time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.sig import sig, sig_signal

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(60, 190, (60, 16, 16, 3)).astype(np.uint8)
LABELS = (np.arange(60) % 4).astype(np.int64)
DATA = (IMAGES, LABELS, KEY)


def test_sine_over_the_columns_with_labels_kept():
    poison = sig(*DATA, target=2, count=6, epsilon=20 / 255, frequency=3.0)
    assert (LABELS[poison.index] == 2).all() and (poison.labels == 2).all() and not poison.how["labels_changed"]
    change = poison.images.astype(int) - IMAGES[poison.index]
    wave = np.rint(20 * np.sin(2 * np.pi * 3 * np.arange(1, 17) / 16))
    np.testing.assert_array_equal(change, np.broadcast_to(wave[None, None, :, None], change.shape))
    triggered = poison.trigger(jnp.asarray(IMAGES[poison.index], jnp.float32) / 255)
    np.testing.assert_array_equal(np.rint(np.asarray(triggered) * 255), poison.images)


def test_published_signal_is_the_same_one_column_earlier():
    published = 40 / 255 * np.sin(2 * np.pi * np.arange(32) * 6 / 32)
    ours = sig_signal((32, 32, 3), 40 / 255)[5, :, 1]
    np.testing.assert_allclose(ours[:-1], published[1:], atol=1e-7)


def test_ramp_and_a_stronger_trigger_at_test_time():
    poison = sig(*DATA, target=0, fraction=0.05, signal="ramp", epsilon=16 / 255, scale=2.0)
    np.testing.assert_array_equal((poison.images.astype(int) - IMAGES[poison.index])[0, 3, :, 1], np.arange(1, 17))
    grey = np.asarray(poison.trigger(jnp.full((1, 16, 16, 3), 0.5)))
    np.testing.assert_allclose((grey - 0.5)[0, 3, :, 1] * 255, 2 * np.arange(1, 17), atol=1e-3)


def test_labels_can_be_changed_instead():
    poison = sig(*DATA, target=0, count=3, frequency=5.0, clean_label=False)
    assert not np.any(LABELS[poison.index] == 0) and (poison.labels == 0).all() and poison.how["labels_changed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signal": "square"}, r"^signal is 'square'; known: sine, ramp$"),
        ({"frequency": 0.0}, r"^frequency is 0\.0; it must be a number above 0$"),
        ({"frequency": 8.0}, r"^frequency is 8\.0; on images 16 wide this signal is zero everywhere$"),
        ({"scale": 0.0}, r"^scale is 0\.0; it must be above 0$"),
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255"),
        ({"target": 7}, r"^target is 7; the labels of this data are"),
        ({"count": 16}, r"^count is 16; there are only 15 images of class 0$"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        sig(*DATA, **{"target": 0, "count": 1, **options})
