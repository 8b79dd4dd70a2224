"""Sleeper Agent on a real surrogate: what is matched, which images are taken, when the surrogate is retrained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.attack.gradient_norms import gradient_norms
from jaxpurify.attack.matching import Passenger
from jaxpurify.attack.sleeper_agent import Scatter, sleeper_agent
from jaxpurify.data.poison import load_poison, save_poison
from jaxpurify.random import image_keys

SETTINGS = {"target": 3, "source": 8, "count": 20, "size": 3, "steps": 12, "epsilon": 16 / 255, "learning_rate": 0.02}


def craft(surrogate, digits, seed=0, **options):
    apply, params = surrogate
    images, labels = digits[0][:1000], digits[1][:1000]
    return sleeper_agent(apply, params, jax.random.key(seed), images, labels, **SETTINGS | options)


@jax.jit
def single_gradient(apply, params, image, label):
    def loss(params):
        return -jax.nn.log_softmax(apply(params, image[None] / 255.0))[0, label]

    return optax.tree.norm(jax.grad(loss)(params))


def test_poisons_match_the_patched_sources(surrogate, digits):
    poison = craft(surrogate, digits, steps=60)
    assert poison.how["last_losses"][0] < 0.6 * poison.how["first_losses"][0]
    change = poison.images.astype(int) - digits[0][poison.index]
    assert 8 < np.abs(change).max() <= 16
    assert (poison.labels == 3).all() and (digits[1][poison.index] == 3).all()
    # One small step of training on the poisons makes patched sources look more like the target than before.
    apply, params = surrogate
    sources = jnp.asarray(digits[0][1000:][digits[1][1000:] == 8], jnp.float32) / 255

    def loss(params, images, label):
        logits = apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(images), label)).mean()

    def gain(images):
        gradient = jax.grad(loss)(params, jnp.asarray(images, jnp.float32) / 255, 3)
        moved = jax.tree.map(lambda leaf, g: leaf - 0.05 / optax.tree.norm(gradient) * g, params, gradient)
        patched = poison.trigger(sources)
        return float(loss(params, patched, 3) - loss(moved, patched, 3))

    assert gain(poison.images) > max(gain(digits[0][poison.index]), 0) + 0.01


def test_the_longest_gradients_are_taken(surrogate, digits):
    poison = craft(surrogate, digits, steps=1, count=10)
    of_class = np.flatnonzero(digits[1][:1000] == 3)
    apply, params = surrogate
    norms = np.array([
        single_gradient(jax.tree_util.Partial(apply), params, digits[0][place].astype(np.float32), 3)
        for place in of_class
    ])  # fmt: skip
    np.testing.assert_array_equal(poison.index, np.sort(of_class[np.argsort(-norms)[:10]]))
    found = gradient_norms(
        (jax.tree_util.Partial(apply),), (params,), digits[0][of_class], digits[1][of_class], chunk=7
    )
    np.testing.assert_allclose(found, norms, rtol=1e-4)
    drawn = craft(surrogate, digits, steps=1, count=10, selection="random")
    assert not np.array_equal(drawn.index, poison.index) and set(drawn.index) <= set(of_class)


def test_the_surrogate_is_retrained_on_the_poisons_so_far(surrogate, digits):
    _, params = surrogate
    calls = []

    def retrain(images, labels, key):
        calls.append((images, labels, float(jax.random.uniform(key))))
        return surrogate[0], jax.tree.map(lambda leaf: leaf + 0.01 * len(calls), params)

    poison = craft(surrogate, digits, retrain=retrain, retrain_every=5)
    assert len(calls) == 2 and poison.how["retrainings"] == 2
    assert calls[0][2] != calls[1][2]
    for images, labels, _ in calls:
        changed = np.flatnonzero((images != digits[0][:1000]).any((1, 2, 3)))
        assert len(changed) and set(changed) <= set(poison.index)
        np.testing.assert_array_equal(labels, digits[1][:1000])
    assert (calls[0][0] != calls[1][0]).any()
    plain, same = (
        craft(surrogate, digits, **options)
        for options in ({}, {"retrain": lambda images, labels, key: surrogate, "retrain_every": 100})
    )
    np.testing.assert_array_equal(plain.images, same.images)
    assert (plain.images != poison.images).any()


def test_patches_are_scattered_while_crafting_and_at_test(surrogate, digits):
    patch = jnp.linspace(0.1, 0.9, 27).reshape(3, 3, 3)
    images = jnp.zeros((200, 8, 6, 3))
    scattered = Scatter(patch)(image_keys(jax.random.key(0), jnp.arange(200)), images)
    np.testing.assert_allclose(scattered.sum((1, 2, 3)), patch.sum(), rtol=1e-5)
    rows, columns = (np.asarray((scattered[..., 0] > 0).any(axis).argmax(1)) for axis in (2, 1))
    assert set(rows) == set(range(6)) and set(columns) == set(range(4))
    given = craft(surrogate, digits, steps=1, patch=np.full((2, 2, 1), 0.5, np.float32))
    seen = np.asarray(given.trigger(jnp.zeros((1, 8, 8, 1)).at[0, 0, 0].set(1 / 255))) == 0.5
    assert seen.sum() == 4 and seen.any((0, 2, 3)).sum() == seen.any((0, 1, 3)).sum() == 2
    again, other = craft(surrogate, digits, steps=1), craft(surrogate, digits, 77, steps=1)
    assert int(again.trigger.seed) != int(other.trigger.seed)


def test_options_and_files(surrogate, digits, tmp_path):
    apply, params = surrogate
    options = {"steps": 3, "source": None, "source_count": 30, "micro_batch": 6, "restarts": 2, "chunk": 8}
    poison = craft(surrogate, digits, **options)
    assert poison.how["sources"] == 30 and poison.how["source"] is None and len(poison.how["last_losses"]) == 2
    two = craft((apply, (params, params)), digits, steps=3)
    one = craft(surrogate, digits, steps=3)
    np.testing.assert_allclose(two.how["first_losses"], 2 * np.array(one.how["first_losses"]), rtol=1e-3)
    save_poison(tmp_path / "poison.npz", poison)
    np.testing.assert_array_equal(load_poison(tmp_path / "poison.npz").trigger.patch, poison.trigger.patch)


def test_all_sources_in_chunks_are_all_sources_at_once(surrogate, digits):
    whole, parts = (craft(surrogate, digits, steps=1, chunk=chunk) for chunk in (1000, 11))
    np.testing.assert_allclose(whole.how["first_losses"], parts.how["first_losses"], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; "),
        ({"source": 3}, r"^source is 3, which is the target class; patched images of it are right already$"),
        ({"source": 12}, r"^source is 12; no training image has this label$"),
        ({"count": 500}, r"^count is 500; there are only \d+ images of class 3$"),
        ({"source_count": 5000}, r"^count is 5000; there are only \d+ images of class 8$"),
        ({"selection": "best"}, r"^selection is 'best' and chunk is 256; known: gradient, random, at least 1$"),
        ({"size": 9}, r"^size is 9; a patch on 8x8 images must be 1 … 8$"),
        ({"patch": np.zeros((3, 3, 3), np.float32)}, r"^patch has the shape \(3, 3, 3\); it must be a square "),
        ({"retrain": lambda *data: None, "restarts": 2}, r"^restarts is 2 and retrain_every is 50; with retrain, 1 "),
        ({"retrain": lambda *data: None, "retrain_every": 5}, r"^retrain returned a NoneType; it must return "),
        (
            {"retrain": lambda *data: (len, {}), "retrain_every": 5},
            r"^retrain returned params of another structure ",
        ),
        ({"loss": Passenger(repel_weight=2.0)}, r"^loss has repel_weight 2\.0; this attack repels nothing$"),
        ({"match": "minibatch"}, r"^match is 'minibatch'; micro_batch must say how many poisons are matched together$"),
        ({"match": "some"}, r"^match is 'some'; known: all, minibatch$"),
    ],
)
def test_bad_input_is_one_clear_line(surrogate, digits, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(surrogate, digits, **options)
    assert "\n" not in str(caught.value)
