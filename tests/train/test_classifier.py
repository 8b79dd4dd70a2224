"""Training a classifier: it learns, repeats itself, and says when it diverges."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxpurify.data.augment import PadCrop
from jaxpurify.defend import ProjectedGradient
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.layers import BatchNorm, Conv, Linear
from jaxpurify.random import named
from jaxpurify.sharding import data_mesh
from jaxpurify.train.batches import epoch_order, steps_per_epoch
from jaxpurify.train.classifier import Recipe, augmentation_key, cross_entropy, train_classifier
from jaxpurify.train.state import TrainingDiverged

KEY = jax.random.key(0)
RECIPE = Recipe(epochs=3, batch_size=50, learning_rate=0.1)
predict = jax.jit(lambda model, images: model(images))


SEEN: list = []  # the types of images when it was traced


class Small(nnx.Module):
    """One convolution with batch normalisation and a linear layer."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv = Conv(1, 8, 3, stride=2, padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(8)
        self.linear = Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        SEEN.append(images.dtype)
        return self.linear(jax.nn.relu(self.norm(self.conv(images))).reshape(len(images), -1))


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return np.rint(bunch.images[..., None] / 16 * 255).astype(np.uint8), bunch.target


def train(digits, count=600, recipe=RECIPE, model=None, **options):
    images, labels = digits
    model = Small() if model is None else model
    return train_classifier(model, images[:count], labels[:count], options.pop("key", KEY), recipe=recipe, **options)


def accuracy(model, digits):
    images, labels = digits[0][1200:], digits[1][1200:]
    return float((predict(model, jnp.asarray(images / np.float32(255))).argmax(-1) == labels).mean())


@pytest.fixture(scope="module")
def trained(digits):
    return train(digits)


def test_it_learns_digits(digits):
    finished = []
    model, history = train(
        digits, 1200, dataclasses.replace(RECIPE, epochs=8), progress=lambda done, total: finished.append((done, total))
    )
    assert accuracy(model, digits) > 0.9
    assert finished == [(epoch, 8) for epoch in range(1, 9)]
    assert {name: values.shape for name, values in history.items()} == {"loss": (8,), "accuracy": (8,)}
    assert (np.diff(history["loss"])[:4] < 0).all() and history["accuracy"][-1] > 0.9


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def test_the_same_key_gives_the_same_weights(digits, trained):
    again, history = train(digits)
    for one, other in zip(leaves(trained[0]), leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(history["loss"], trained[1]["loss"])
    other, _ = train(digits, key=jax.random.key(1))
    assert np.abs(leaves(other)[-1] - leaves(again)[-1]).max() > 1e-4


def test_the_module_is_left_as_it_was(digits):
    model = Small()
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
    train(digits, 100, dataclasses.replace(RECIPE, epochs=1), model)
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(model)), before)


def test_what_is_returned_is_in_evaluation_mode(digits, trained):
    images = jnp.asarray(digits[0][:4] / np.float32(255))
    model = trained[0]
    np.testing.assert_allclose(predict(model, images)[:1], predict(model, images[:1]), atol=1e-5)
    mean = model.state["norm"]["mean"]
    assert np.abs(mean).max() > 1e-2  # the running statistics moved


def test_one_step_is_the_update_of_the_recipe(digits):
    recipe = Recipe(1, 60, 0.3, 0.9, 0.01, "cosine", 0.1)
    model, history = train(digits, 60, recipe)
    graphdef, params, rest = nnx.split(Small(), nnx.Param, ...)
    params = nnx.as_pure(params)
    rows = epoch_order(KEY, 0, 60, 60)[0]
    images, labels = jnp.asarray(digits[0][rows] / np.float32(255)), digits[1][rows]

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = nnx.merge(graphdef, params, nnx.as_pure(rest))(images)
        target = 0.9 * jax.nn.one_hot(labels, 10) + 0.01
        return optax.softmax_cross_entropy(logits, target).mean()

    value, gradient = loss(params)
    np.testing.assert_allclose(history["loss"], [value], rtol=1e-5)
    for name in ("kernel", "bias"):
        decayed = gradient["linear"][name] + 0.01 * params["linear"][name]
        expected = params["linear"][name] - 0.3 * 1.9 * decayed
        np.testing.assert_allclose(model.state["linear"][name], expected, atol=1e-5)


def test_augmentation_is_one_key_an_image_and_epoch(digits, trained):
    augmented, history = train(digits, augment=PadCrop(1))
    _, same = train(digits, augment=PadCrop(1))
    np.testing.assert_array_equal(history["loss"], same["loss"])
    assert history["loss"][-1] > trained[1]["loss"][-1]
    assert accuracy(augmented, digits) > 0.5
    epochs = [jax.random.key_data(augmentation_key(KEY, np.uint32(epoch))) for epoch in (0, 1)]
    assert (epochs[0] != epochs[1]).any()


def test_devices_augment_as_one(digits):
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=40)
    _, alone = train(digits, 120, recipe, augment=PadCrop(1))
    with jax.debug_key_reuse(False):  # the checker takes what `shard_map` sees for consumed
        _, shared = train(digits, 120, recipe, augment=PadCrop(1), mesh=data_mesh())
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=1e-4)


def test_half_precision_activations(digits):
    SEEN.clear()
    model, history = train(digits, recipe=dataclasses.replace(RECIPE, dtype="bfloat16"))
    assert all(leaf.dtype == np.float32 for leaf in leaves(model))
    assert jnp.bfloat16 in SEEN
    assert history["accuracy"][-1] > 0.85
    assert accuracy(model, digits) > 0.8


def test_devices_share_a_batch(digits):
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=40)
    one, history = train(digits, 120, recipe)
    four, shared = train(digits, 120, recipe, mesh=data_mesh())
    np.testing.assert_allclose(shared["loss"], history["loss"], rtol=1e-4)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(four))
    for left, right in zip(leaves(one), leaves(four), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    with pytest.raises(ValueError, match="batch_size=50 is no multiple of the 4 devices"):
        train(digits, 120, RECIPE, mesh=data_mesh())


def test_divergence_names_the_epoch(digits):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"the loss became nan in epoch 1; lower the learning rate"):
        train(digits, 200, recipe)


def test_label_smoothing():
    logits = jax.random.normal(KEY, (5, 10))
    labels = jnp.arange(5)
    for smoothing in (0.0, 0.3):
        target = (1 - smoothing) * jax.nn.one_hot(labels, 10) + smoothing / 10
        expected = optax.softmax_cross_entropy(logits, target)
        np.testing.assert_allclose(cross_entropy(logits, labels, smoothing), expected, rtol=1e-5)


def test_epochs_are_fresh_orders_of_full_batches():
    orders = [np.asarray(epoch_order(KEY, epoch, 23, 5)) for epoch in range(3)]
    assert all(order.shape == (4, 5) for order in orders)
    assert all(len(np.unique(order)) == 20 and order.max() < 23 for order in orders)
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(orders[2], epoch_order(KEY, 2, 23, 5))
    assert (np.asarray(epoch_order(named(KEY, "other"), 2, 23, 5)) != orders[2]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1; it must be a number above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0; it must be in"),
        ({"dtype": "float16"}, "dtype='float16'; known: float32, bfloat16"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_training_that_stops_early_is_the_beginning_of_the_whole(digits, trained):
    finished = []
    early, history = train(digits, stop_after=2, progress=lambda done, total: finished.append((done, total)))
    np.testing.assert_array_equal(history["loss"], trained[1]["loss"][:2])  # the schedule is that of three epochs
    assert finished == [(1, 2), (2, 2)]
    whole = train(digits, stop_after=3)[0]
    untrained, empty = train(digits, stop_after=0)
    assert len(empty["loss"]) == 0
    for one, other in zip(leaves(whole), leaves(trained[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(leaves(untrained), leaves(freeze(Small())), strict=True):
        np.testing.assert_array_equal(one, other)
    assert accuracy(early, digits) > accuracy(untrained, digits) + 0.2
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"^stop_after={wrong}; it must be 0 to the recipe's 3 epochs$"):
            train(digits, stop_after=wrong)


@pytest.mark.parametrize("count", [-1, 1])
def test_labels_are_one_an_image(digits, count):
    images, labels = digits
    with pytest.raises(ValueError, match=r"^labels have the shape \(\d+,\) for \d+ images; give one of each an image$"):
        train_classifier(Small(), images[:60], np.resize(labels, 60 + count), KEY, recipe=RECIPE)


def test_images_that_are_not_stored_ones_are_refused(digits, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    images, labels = digits[0][:60], digits[1][:60]
    with pytest.raises(ValueError, match=r"^images are float64 \(60, 8, 8, 1\); stored images must be uint8"):
        train_classifier(Small(), images / 255, labels, KEY, recipe=RECIPE)
    with pytest.raises(ValueError, match=r"^labels are float64; they must be whole numbers$"):
        train_classifier(Small(), images, labels + 0.5, KEY, recipe=RECIPE)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_are_no_classes_are_refused(digits, label):
    images, labels = digits
    wrong = np.where(np.arange(len(labels)) == 3, label, labels)
    with pytest.raises(ValueError, match=r"^labels span -?\d+ … \d+; the model has the classes 0 … 9$"):
        train((images, wrong), 60)


def test_too_few_images_are_refused(digits):
    with pytest.raises(ValueError, match="30 training images are fewer than one batch of 50"):
        train(digits, 30)
    assert steps_per_epoch(50, 50) == 1


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The sign of the gradient of the loss, once."""

    epsilon: float = 0.1

    def __call__(self, classifier, keys, images, labels):
        gradient = jax.grad(lambda images: cross_entropy(classifier(images), labels).sum())(images)
        return jnp.clip(images + self.epsilon * jnp.sign(gradient), 0, 1)


def attacked_accuracy(model, digits):
    images, labels = jnp.asarray(digits[0][1200:] / np.float32(255)), jnp.asarray(digits[1][1200:])
    keys = jax.random.split(jax.random.key(9), len(images))
    return float((predict(model, jax.jit(OneStep())(model, keys, images, labels)).argmax(-1) == labels).mean())


def test_training_on_adversarial_examples_withstands_them(digits):
    recipe = dataclasses.replace(RECIPE, epochs=8)
    plain, robust = (train(digits, 1200, recipe, adversary=adversary)[0] for adversary in (None, OneStep()))
    assert attacked_accuracy(robust, digits) > attacked_accuracy(plain, digits) + 0.1
    assert accuracy(robust, digits) > 0.85


def keep(classifier, keys, images, labels):
    return images + 0 * classifier(images).sum()


def test_an_adversary_that_only_looks_changes_nothing(digits, trained):
    """Not the running statistics either: it sees the network in evaluation mode."""
    same, _ = train(digits, adversary=keep)
    for one, other in zip(leaves(trained[0]), leaves(same), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_adversarial_examples_on_several_devices(digits):
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=40)
    one, alone = train(digits, 120, recipe, adversary=ProjectedGradient(steps=2))
    four, shared = train(digits, 120, recipe, adversary=ProjectedGradient(steps=2), mesh=data_mesh())
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=1e-4)
    assert one.graphdef == four.graphdef
