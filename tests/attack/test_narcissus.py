"""The optimised trigger on a real surrogate: it works, it is selected as published, it compiles once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack import narcissus
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import poison_dataset, triggered_test_set
from jaxpurify.struct import struct


def craft(surrogate, digits, key=None, **arguments):
    apply, params = surrogate
    key = jax.random.key(0) if key is None else key
    arguments = {"target": 3, "count": 20, "steps": 60, "learning_rate": 0.02, "batch_size": 64} | arguments
    return narcissus(apply, params, key, *digits, **arguments)


def to_target(surrogate, poison, images, labels):
    apply, params = surrogate
    others = jnp.asarray(images[labels != poison.target], jnp.float32) / 255
    return float((apply(params, poison.trigger(others)).argmax(-1) == poison.target).mean())


@pytest.mark.parametrize("arguments", [{}, {"optimizer": "adam"}, {"saturate": True}])
def test_trigger_lowers_the_loss_and_moves_unseen_images_to_the_target(surrogate, digits, arguments):
    strong, weak = (craft(surrogate, digits, steps=150, epsilon=level / 255, **arguments) for level in (40, 8))
    assert strong.how["triggered_loss"] < 0.5 * weak.how["triggered_loss"] < 0.5 * weak.how["clean_loss"]
    unseen = digits[0][1000:], digits[1][1000:]
    assert to_target(surrogate, strong, *unseen) > to_target(surrogate, weak, *unseen) + 0.1


def test_poisons_are_the_last_of_the_class_and_carry_the_trigger(surrogate, digits):
    images, labels = digits
    poison = craft(surrogate, digits, count=7, epsilon=20 / 255)
    np.testing.assert_array_equal(poison.index, np.flatnonzero(labels == 3)[-7:])
    assert (poison.labels == 3).all() and poison.target == 3 and poison.labels.dtype == np.int32
    triggered = poison.trigger(jnp.asarray(images[poison.index], jnp.float32) / 255)
    np.testing.assert_array_equal(np.rint(np.asarray(triggered) * 255), poison.images)
    drawn = craft(surrogate, digits, count=7, choice="random")
    assert set(drawn.index) <= set(np.flatnonzero(labels == 3))
    assert not np.array_equal(drawn.index, poison.index) and (np.diff(drawn.index) > 0).all()


def test_scale_is_of_the_test_and_leaves_the_poisons(surrogate, digits):
    plain, strong = (craft(surrogate, digits, steps=1, optimizer="adam", scale=each) for each in (1.0, 3.0))
    np.testing.assert_array_equal(strong.images, plain.images)
    grey = jnp.full((1, 8, 8, 1), 0.5)
    moved, further = (np.asarray(poison.trigger(grey)) - 0.5 for poison in (plain, strong))
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(further, 3 * moved, atol=1e-6)


def test_fraction_is_of_the_whole_training_set(surrogate, digits):
    assert len(craft(surrogate, digits, count=None, fraction=0.01).index) == 18


def test_batches_follow_the_key(surrogate, digits):
    one, same, other = (craft(surrogate, digits, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert one.how["triggered_loss"] == same.how["triggered_loss"] != other.how["triggered_loss"]
    np.testing.assert_array_equal(one.images, same.images)


def test_new_weights_labels_and_budgets_do_not_retrace(surrogate, digits):
    apply, params = surrogate
    counted = chex.assert_max_traces(apply, n=3)  # for its shape, in the step, and to measure
    for seed, target in enumerate((1, 2, 5)):
        images, labels = digits[0][:170], np.arange(170, dtype=np.int32) % 10
        weights = jax.tree.map(lambda leaf, seed=seed: leaf + 0.01 * seed, params)
        epsilon = (8 + seed) / 255
        craft((counted, weights), (images, labels), target=target, count=3, steps=4, epsilon=epsilon)


def test_a_struct_with_weights_is_a_surrogate_too(surrogate, digits):
    apply, params = surrogate

    @struct
    class Frozen:
        weights: dict

        def __call__(self, nothing, images):
            return apply(self.weights, images)

    as_struct, as_function = (craft(form, digits, steps=5) for form in ((Frozen(params), None), surrogate))
    np.testing.assert_array_equal(as_struct.images, as_function.images)


def test_compiled_loop_gives_the_trigger_of_the_python_loop(surrogate, digits, monkeypatch):
    in_python = craft(surrogate, digits, steps=10)
    monkeypatch.setattr("jaxpurify.loop.runs_in_python", lambda *trees: False)
    compiled = craft(surrogate, digits, steps=10)
    np.testing.assert_allclose(compiled.how["triggered_loss"], in_python.how["triggered_loss"], rtol=1e-5)
    difference = compiled.images.astype(int) - in_python.images
    assert np.abs(difference).max() <= 1


def test_surrogate_label_is_what_is_minimised(surrogate, digits):
    poison = craft(surrogate, digits, surrogate_label=8, epsilon=32 / 255)
    assert poison.target == 3 and poison.how["surrogate_label"] == 8
    apply, params = surrogate
    threes = jnp.asarray(digits[0][digits[1] == 3], jnp.float32) / 255
    before = (apply(params, threes).argmax(-1) == 8).mean()
    assert (apply(params, poison.trigger(threes)).argmax(-1) == 8).mean() > before + 0.3


def halve(keys, images):
    return images / 2


def test_transform_stands_between_trigger_and_surrogate(surrogate, digits):
    apply, params = surrogate

    def halved(params, images):
        return apply(params, images / 2)

    adaptive, plain = (craft(surrogate, digits, transform=transform, steps=3) for transform in (halve, None))
    through = craft((halved, params), digits, steps=3)
    assert adaptive.how["adaptive"] and not plain.how["adaptive"]
    for loss in ("clean_loss", "triggered_loss"):
        np.testing.assert_allclose(adaptive.how[loss], through.how[loss], rtol=1e-6)
    assert abs(adaptive.how["clean_loss"] / plain.how["clean_loss"] - 1) > 0.1


def test_the_loss_is_the_mean_over_members(surrogate, digits):
    apply, params = surrogate
    weaker = jax.tree.map(lambda leaf: leaf / 2, params)
    one, other, both, twice = (
        craft((apply, members), digits, steps=1) for members in (params, weaker, (params, weaker), [params, params])
    )
    mean = (one.how["clean_loss"] + other.how["clean_loss"]) / 2
    assert both.how["members"] == 2 and both.how["clean_loss"] == pytest.approx(mean, rel=1e-5)
    assert abs(one.how["clean_loss"] - mean) > 0.01 * mean
    np.testing.assert_array_equal(twice.images, one.images)
    trained = craft((apply, (params, weaker)), digits)
    assert trained.how["triggered_loss"] < 0.5 * trained.how["clean_loss"]
    with pytest.raises(ValueError, match=r"^apply has 0 functions for 0 members of the ensemble$"):
        craft((apply, ()), digits)


def test_a_warm_up_makes_another_output_that_of_the_class(surrogate, digits):
    apply, params = surrogate
    released, cold, own = (
        craft(surrogate, digits, steps=1, **options)
        for options in ({"surrogate_label": 5, "warmup_epochs": 5}, {"surrogate_label": 5}, {})
    )
    assert released.how["clean_loss"] < 0.1 * cold.how["clean_loss"] and own.how["clean_loss"] < cold.how["clean_loss"]
    again = craft(surrogate, digits, steps=1, surrogate_label=5, warmup_epochs=5)
    assert again.how == released.how and again.how["warmup_epochs"] == 5
    slower = craft(surrogate, digits, steps=1, surrogate_label=5, warmup_epochs=5, warmup_rate=0.001)
    assert released.how["clean_loss"] < slower.how["clean_loss"] < cold.how["clean_loss"]
    both = craft(([apply, apply], [params, params]), digits, steps=1, surrogate_label=5, warmup_epochs=5)
    assert both.how["clean_loss"] < 0.1 * cold.how["clean_loss"]


def test_steps_through_a_long_chain_loop_in_python_and_give_what_the_compiled_step_gives(surrogate, digits, long_chain):
    chain, looped = long_chain
    options = {"optimizer": "adam", "steps": 4}
    poison = craft(surrogate, digits, transform=chain, **options)
    # Three outer loops; in each of the 4 steps and the 2 + 2 that measure, the steps of the chain that are frozen.
    assert looped.count(True) >= 3 + 4 + 2 + 2
    looped.clear()
    compiled = craft(surrogate, digits, transform=lambda keys, images: chain(keys, images), **options)
    assert looped.count(True) == 3
    np.testing.assert_allclose(poison.trigger.delta, compiled.trigger.delta, atol=1.5 / 255)
    assert (poison.trigger.delta == compiled.trigger.delta).mean() > 0.95
    plain = craft(surrogate, digits, **options)
    for loss in ("clean_loss", "triggered_loss"):
        assert poison.how[loss] == pytest.approx(compiled.how[loss], rel=1e-3)
        assert poison.how[loss] != pytest.approx(plain.how[loss], rel=1e-2)


def test_draws_of_the_transform_are_averaged_in_every_step(surrogate, digits):
    seen = []

    def dimmed(keys, images):
        seen.append(1)
        return images * jax.vmap(jax.random.uniform)(keys)[:, None, None, None]

    # A batch that is the whole class: what differs between the two is the draws alone.
    options = {"transform": dimmed, "steps": 1, "batch_size": 1000}
    one = craft(surrogate, digits, **options)
    traced = len(seen)
    four = craft(surrogate, digits, transform_draws=4, **options)
    assert len(seen) == 5 * traced and four.how["transform_draws"] == 4
    assert four.how["clean_loss"] != one.how["clean_loss"]
    assert four.how["clean_loss"] == pytest.approx(one.how["clean_loss"], rel=0.2)


def test_poison_goes_into_training_data_at_its_index(surrogate, digits):
    dataset = Dataset(*digits, tuple("0123456789"))
    poison = craft(surrogate, digits, count=4)
    poisoned = poison_dataset(dataset, poison)
    np.testing.assert_array_equal(np.flatnonzero((poisoned.images != digits[0]).any((1, 2, 3))), poison.index)
    np.testing.assert_array_equal(poisoned.labels, digits[1])
    assert not (triggered_test_set(dataset, poison).labels == 3).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ({"epsilon": -0.1}, r"^epsilon is -0\.1; "),
        ({"count": 500}, r"^count is 500; there are only 183 images of class 3$"),
        ({"count": 0}, r"^count is 0; it must be at least 1$"),
        ({"count": None}, r"^count is None and fraction is None; give exactly one of them$"),
        ({"count": None, "fraction": 1.5}, r"^fraction is 1\.5; it must be above 0 and at most 1$"),
        ({"target": 10}, r"^target is 10; the labels of this data are 0 … 9$"),
        ({"target": -1}, r"^target is -1; "),
        ({"surrogate_label": 10}, r"^surrogate_label is 10; the surrogate's outputs are 0 … 9$"),
        ({"warmup_epochs": -1}, r"^warmup_epochs is -1 and warmup_rate is 0\.1; at least 0, and above 0$"),
        ({"optimizer": "sgd"}, r"^optimizer is 'sgd'; known: adam, radam$"),
        ({"choice": "first"}, r"^choice is 'first'; it must be 'random' or 'last'$"),
        ({"transform_draws": 0}, r"^transform_draws is 0; it must be at least 1$"),
        ({"transform_draws": 2}, r"^transform_draws is 2; more than 1 needs noise to draw: "),
        ({"steps": 0}, r"^steps is 0 and batch_size is 64; both must be at least 1$"),
        ({"learning_rate": float("nan")}, r"^learning_rate is nan and scale is 1\.0; both must be above 0$"),
        ({"scale": 0.0}, r"^learning_rate is 0\.\d+ and scale is 0\.0; both must be above 0$"),
    ],
)
def test_bad_input_is_one_clear_line(surrogate, digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(surrogate, digits, **arguments)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_is_named(digits):
    def broken(params, images):
        return jnp.nan * images.reshape(len(images), -1)[:, :10]

    with pytest.raises(ValueError, match=r"^the surrogate's loss is not finite at step 0 of 60; lower learning_rate$"):
        narcissus(broken, None, jax.random.key(0), *digits, target=3, count=2, steps=60)


def test_a_surrogate_without_a_batch_of_logits_is_refused(digits):
    with pytest.raises(ValueError, match=r"it must give logits \[B, classes\]"):
        narcissus(lambda params, images: images.sum(), None, jax.random.key(0), *digits, target=3, count=2)
