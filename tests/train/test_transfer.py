"""Transfer victims: cached features, many heads as one program, and fine-tuning from given weights."""

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.layers import BatchNorm, Conv, Linear
from jaxpurify.train.classifier import Recipe
from jaxpurify.train.heads import embed, train_heads
from jaxpurify.train.transfer import fine_tune, linear_transfer

KEY = jax.random.key(3)
predict = jax.jit(lambda model, images: model(images))


class Small(nnx.Module):
    """One convolution with batch normalisation and a linear layer."""

    def __init__(self, seed=0, classes=10):
        rngs = nnx.Rngs(seed)
        self.conv = Conv(1, 8, 3, stride=2, padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(8)
        self.linear = Linear(128, classes, rngs=rngs)

    def features(self, images):
        return jax.nn.relu(self.norm(self.conv(images))).reshape(len(images), -1)

    def __call__(self, images):
        return self.linear(self.features(images))


class Headless(nnx.Module):
    """A network without a layer called `linear`."""

    def __init__(self):
        self.conv = Conv(1, 10, 8, padding=0, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.conv(images).reshape(len(images), -1)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return np.rint(bunch.images[..., None] / 16 * 255).astype(np.uint8), bunch.target.astype(np.int32)


def accuracy(model, images, labels):
    return float((predict(model, jnp.asarray(images, jnp.float32) / 255).argmax(-1) == labels).mean())


def test_features_do_not_depend_on_the_batch_and_compile_once(digits):
    model = freeze(Small())
    images = digits[0][:130]
    whole = predict(model.features, jnp.asarray(images, jnp.float32) / 255)
    counted = chex.assert_max_traces(lambda images: model.features(images), n=1)
    for batch_size in (50, 500):
        got = embed(model.features, images, batch_size=batch_size)
        assert got.dtype == np.float32 and got.shape == (130, 128)
        np.testing.assert_allclose(got, whole, atol=1e-5)
    np.testing.assert_allclose(embed(counted, images, batch_size=50), whole, atol=1e-5)


def test_a_linear_victim_learns_on_frozen_features(digits):
    images, labels = digits
    model = freeze(Small())
    victim, history = linear_transfer(
        model, images[:1000], labels[:1000], KEY, classes=10, epochs=20, learning_rate=0.01
    )
    assert accuracy(victim, images[1000:], labels[1000:]) > 0.8
    assert history["loss"].shape == (20,) and history["loss"][-1] < history["loss"][0] / 4
    cached = embed(model.features, images[:1000])
    options = {"classes": 10, "epochs": 20, "learning_rate": 0.01}
    again, _ = linear_transfer(model, images[:1000], labels[:1000], KEY, features=cached, **options)
    np.testing.assert_array_equal(victim.weight, again.weight)


def test_heads_trained_together_are_those_trained_alone(digits):
    images, labels = digits
    features = embed(freeze(Small()).features, images[:300])
    keys = jax.random.split(KEY, 3)
    rows = np.stack([np.arange(start, start + 200) for start in (0, 50, 100)])
    options = {"classes": 10, "epochs": 4, "optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 2e-4}
    together, history = train_heads(features, labels[:300], keys, rows=rows, **options)
    assert history["accuracy"].shape == (4, 3)
    for head in range(3):
        alone, _ = train_heads(features[rows[head]], labels[rows[head]], keys[head : head + 1], **options)
        np.testing.assert_allclose(together.weight[head], alone.weight[0], atol=1e-5)
        np.testing.assert_allclose(together.bias[head], alone.bias[0], atol=1e-5)
    assert np.abs(np.asarray(together.weight[0] - together.weight[1])).max() > 0.01
    logits = together(jnp.asarray(features))
    np.testing.assert_allclose(logits[2], features @ together.weight[2] + together.bias[2][None], atol=1e-4)


def test_one_step_of_a_head_is_adam_on_the_mean_cross_entropy():
    features = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    labels = np.array([0, 1], np.int32)
    # Adam's first step is the learning rate against the sign of every gradient that is not 0; the drop at the share
    # 0.75 of two steps comes after the second.
    first, _ = train_heads(features, labels, KEY.reshape(1), classes=2, epochs=1, learning_rate=1e-6)
    moved, history = train_heads(features, labels, KEY.reshape(1), classes=2, epochs=1, learning_rate=0.1, drops=())
    change = np.asarray(moved.weight[0] - first.weight[0])
    np.testing.assert_allclose(change, [[0.1, -0.1], [-0.1, 0.1]], atol=1e-4)
    logits = features @ np.asarray(first.weight[0]) + np.asarray(first.bias[0])[None]
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[[0, 1], labels])
    np.testing.assert_allclose(history["loss"][0, 0], expected, rtol=1e-4)


def test_two_steps_of_a_head_are_sgd_with_momentum_decay_and_a_drop():
    features = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]], np.float32)
    labels = np.array([0, 1, 1], np.int32)
    options = {"classes": 2, "optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1, "drops": (0.5,)}
    first, _ = train_heads(features, labels, KEY.reshape(1), epochs=1, learning_rate=0.0, **options)
    moved, _ = train_heads(features, labels, KEY.reshape(1), epochs=2, learning_rate=0.5, **options)
    inputs, wanted = np.c_[features, np.ones(3)], np.eye(2)[labels]
    layer = np.r_[np.asarray(first.weight[0]), np.asarray(first.bias)]
    trace = 0
    for rate in (0.5, 0.05):
        chances = np.exp(inputs @ layer)
        chances /= chances.sum(1, keepdims=True)
        trace = inputs.T @ (chances - wanted) / 3 + 0.1 * layer + 0.8 * trace
        layer = layer - rate * trace
    np.testing.assert_allclose(moved.weight[0], layer[:2], atol=1e-5)
    np.testing.assert_allclose(moved.bias[0], layer[2], atol=1e-5)


def test_fine_tuning_starts_from_the_weights_and_leaves_them(digits):
    images, labels = digits
    recipe = Recipe(epochs=4, batch_size=50, learning_rate=0.1)
    start, _ = fine_tune(Small(), images[:600], labels[:600], KEY, recipe=recipe)
    before = accuracy(start, images[1000:], labels[1000:])
    assert before > 0.8
    leaves = jax.tree.map(np.asarray, start.state)
    gentle = Recipe(epochs=1, batch_size=50, learning_rate=1e-4, schedule="multistep")
    tuned, history = fine_tune(start, images[:600], labels[:600], jax.random.key(9), recipe=gentle)
    assert history["accuracy"][0] > 0.9 and accuracy(tuned, images[1000:], labels[1000:]) > before - 0.05
    jax.tree.map(np.testing.assert_array_equal, start.state, leaves)
    moved = np.abs(np.asarray(tuned.state["conv"]["kernel"]) - leaves["conv"]["kernel"]).max()
    assert 0 < moved < 0.01
    assert np.abs(np.asarray(tuned.state["norm"]["mean"]) - leaves["norm"]["mean"]).max() > 0


def test_fine_tuning_for_other_classes_makes_a_new_last_layer(digits):
    images, labels = digits
    recipe = Recipe(epochs=5, batch_size=50, learning_rate=0.1)
    model = Small()
    tuned, history = fine_tune(freeze(model), images[:600], labels[:600] % 2, KEY, recipe=recipe, classes=2)
    assert tuned(jnp.zeros((1, 8, 8, 1))).shape == (1, 2) and history["accuracy"][-1] > 0.85
    assert model.linear.kernel.shape == (128, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lion"}, r"^optimizer is 'lion'; known: adam, sgd$"),
        ({"classes": 1}, r"^2 labels up to 1; 2 below 1 are needed$"),
        ({"rows": np.array([[0, 2]])}, r"^rows are 0 … 2; features have rows 0 … 1$"),
        ({"rows": np.zeros((2, 2), int)}, r"^rows are \(2, 2\) and keys 1; "),
        ({"epochs": 0}, r"^epochs=0, batch_size=64; both must be at least 1$"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    arguments = {"classes": 2} | arguments
    with pytest.raises(ValueError, match=message):
        train_heads(np.zeros((2, 3), np.float32), np.array([0, 1]), KEY.reshape(1), **arguments)


def test_a_network_without_a_linear_layer_keeps_its_head(digits):
    with pytest.raises(ValueError, match=r"^classes is 5; it must be at least 1, for a network with a last layer"):
        fine_tune(Headless(), *digits, KEY, recipe=Recipe(), classes=5)
    with pytest.raises(ValueError, match=r"^0 images in batches of 500; both must be at least 1$"):
        embed(freeze(Headless()), digits[0][:0])
