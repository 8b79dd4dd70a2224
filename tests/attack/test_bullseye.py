"""Bullseye Polytope: published losses, budgets, ensembles, blocks, several targets and purifiers in between."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.bullseye import bullseye, bullseye_loss
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Targets, load_poison, poison_dataset, save_poison
from jaxpurify.train.heads import train_heads
from tests.attack import golden

KEY = jax.random.key(1)


def craft(digits, apply=golden.hidden, params=None, key=KEY, **arguments):
    params = golden.hidden_weights() if params is None else params
    defaults = {"target": 7, "targets": golden.digit_targets(digits, [1700]), "steps": 40, "learning_rate": 0.02}
    if "fraction" not in arguments and "bases" not in arguments:
        defaults["count"] = 5
    return bullseye(apply, params, key, *digits, **(defaults | {"epsilon": 32 / 255} | arguments))


@pytest.mark.parametrize(
    ("form", "loss", "norm", "first", "last"),
    [
        ("mean_squared", 0.2384153743, 0.1102920515, 0.0009365241, 0.0081505922),
        ("relative", 0.9560086119, None, None, None),
    ],
)
def test_losses_are_those_of_the_published_code(form, loss, norm, first, last):
    with jax.enable_x64(True):
        poisons, targets = jnp.asarray(golden.POISONS), jnp.asarray(golden.TARGETS)
        if form == "relative":
            targets = targets[:1]

        def objective(rows):
            features = golden.network_features(rows)[None], golden.network_features(targets)[None]
            return bullseye_loss(*features, form)[0]

        value, gradient = jax.value_and_grad(objective)(poisons)
        np.testing.assert_allclose(value, loss, rtol=1e-8)
        if norm is not None:
            np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-8)
            np.testing.assert_allclose([gradient[0, 0], gradient[7, 5]], [first, last], rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "loss"),
    [("relative", 1.12483239), ("relative_squared", 0.63262395), ("mean_squared", 1.97037671)],
)
def test_three_forms_of_the_objective_agree_with_the_benchmarks(form, loss):
    poisons, target = (jnp.asarray(rows, jnp.float32)[None] for rows in golden.random_rows())
    np.testing.assert_allclose(bullseye_loss(poisons, target, form), [loss], rtol=1e-5)
    # A map of 2 x 2 positions with the same features everywhere has the same loss.
    maps = [jnp.tile(rows[:, :, None, None], (1, 1, 2, 2, 1)) for rows in (poisons, target)]
    np.testing.assert_allclose(bullseye_loss(*maps, form), [loss], rtol=1e-5)


def test_positions_where_the_target_is_zero_and_poisons_on_the_target_have_finite_gradients():
    target = jnp.array([[[[1.0, 2.0], [0.0, 0.0]]]])
    for form in ("relative", "relative_squared", "mean_squared"):
        gradient = jax.grad(lambda rows, form=form: bullseye_loss(rows, target, form).sum())(target)
        np.testing.assert_array_equal(gradient, np.zeros_like(target))
        assert bullseye_loss(target + 1, target, form)[0] > 0


@pytest.mark.parametrize("objective", ["relative", "relative_squared", "mean_squared"])
@pytest.mark.parametrize("optimizer", ["signed_adam", "sign_then_adam", "adam"])
def test_poisons_move_onto_the_target_within_the_budget(digits, objective, optimizer):
    poison = craft(digits, objective=objective, optimizer=optimizer, steps=60, decay=True)
    assert poison.how["objective"] < 0.8 * poison.how["clean_objective"]
    moved = poison.images.astype(int) - digits[0][poison.index]
    assert 16 < np.abs(moved).max() <= 32
    assert (poison.labels == 7).all() and (digits[1][poison.index] == 7).all() and poison.target == 7
    assert poison.targets.index.tolist() == [1700]


def test_measured_objective_is_that_of_the_stored_images(digits):
    poison = craft(digits)
    weights = golden.hidden_weights()
    poisons, target = (
        golden.hidden(weights, jnp.asarray(images, jnp.float32) / 255)[None]
        for images in (poison.images, poison.targets.images)
    )
    np.testing.assert_allclose(poison.how["objective"], bullseye_loss(poisons, target)[0], rtol=1e-5)


def test_separate_targets_are_those_crafted_alone(digits):
    targets = golden.digit_targets(digits, [1700, 1701, 1702])
    classes = [(label + 1) % 10 for label in targets.labels.tolist()]
    together = craft(digits, target=classes, targets=targets, separately=True, start="normal", restarts=2)
    assert [poison.target for poison in together] == classes
    for number, poison in enumerate(together):
        one = Targets(*(getattr(targets, name)[number : number + 1] for name in ("images", "labels", "index")))
        alone_key = jax.random.fold_in(KEY, number)
        alone = craft(digits, key=alone_key, target=classes[number], targets=one, start="normal", restarts=2)
        np.testing.assert_array_equal(poison.index, alone.index)
        assert np.abs(poison.images.astype(int) - alone.images).max() <= 1
        np.testing.assert_allclose(poison.how["objective"], alone.how["objective"], rtol=1e-3)


def test_the_best_restart_is_kept(digits):
    one, four = (craft(digits, start="normal", restarts=restarts, steps=3) for restarts in (1, 4))
    assert four.how["objective"] <= one.how["objective"]


def test_bases_can_be_given(digits):
    bases = np.flatnonzero(digits[1] == 7)[[9, 3, 5]]
    np.testing.assert_array_equal(craft(digits, bases=bases).index, bases)
    targets, rows = golden.digit_targets(digits, [1700, 1702]), np.flatnonzero(digits[1] == 7)[:6].reshape(2, 3)
    for poison, given in zip(craft(digits, bases=rows, targets=targets, separately=True), rows, strict=True):
        np.testing.assert_array_equal(poison.index, given)
    fraction = craft(digits, fraction=0.004, steps=1)
    assert len(fraction) == 7


def test_an_ensemble_averages_its_members(digits):
    members = [golden.hidden_weights(seed) for seed in (0, 1)]
    alone = [craft(digits, params=member, steps=1) for member in members]
    both = craft(digits, params=members, steps=1)
    mean = np.mean([poison.how["clean_objective"] for poison in alone])
    np.testing.assert_allclose(both.how["clean_objective"], mean, rtol=1e-5)
    assert both.how["members"] == 2


def blocks(params, images):
    maps = jnp.tanh(images * params[0, 0] + 0.1)
    return [maps, golden.hidden(params, images)]


def test_end_to_end_mode_averages_its_blocks(digits):
    poison = craft(digits, apply=blocks)
    assert poison.how["blocks"] == [2] and poison.how["objective"] < poison.how["clean_objective"]
    only = craft(digits, apply=lambda params, images: blocks(params, images)[:1])
    last = craft(digits)
    mean = (only.how["clean_objective"] + last.how["clean_objective"]) / 2
    np.testing.assert_allclose(poison.how["clean_objective"], mean, rtol=1e-5)


def with_dropout(params, images, key):
    features = golden.hidden(params, images)
    return features * jax.random.bernoulli(key, 0.5, features.shape) * 2


def test_draws_of_a_stochastic_network_are_averaged(digits):
    certain, one, many = craft(digits), *(craft(digits, apply=with_dropout, draws=draws) for draws in (1, 16))
    assert many.how["draws"] == 16
    distance = [abs(poison.how["clean_objective"] - certain.how["clean_objective"]) for poison in (one, many)]
    assert distance[1] < distance[0]
    assert many.how["objective"] < many.how["clean_objective"]


def halve(keys, images):
    return images / 2


def noise(keys, images):
    return images + 0.1 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)


def test_a_transform_stands_between_poisons_and_network_but_not_before_the_target(digits):
    adaptive = craft(digits, transform=halve, steps=1)
    weights = golden.hidden_weights()
    poisons = golden.hidden(weights, jnp.asarray(digits[0][adaptive.index], jnp.float32) / 255 / 2)[None]
    target = golden.hidden(weights, jnp.asarray(adaptive.targets.images, jnp.float32) / 255)[None]
    np.testing.assert_allclose(adaptive.how["clean_objective"], bullseye_loss(poisons, target)[0], rtol=1e-5)
    assert adaptive.how["adaptive"] and not adaptive.how["augmented"]
    augmented = craft(digits, augment=halve, steps=1)
    assert augmented.how["clean_objective"] == adaptive.how["clean_objective"] and augmented.how["augmented"]


def test_the_objective_is_averaged_over_the_transforms_draws(digits):
    few, many = (
        [
            craft(
                digits,
                transform=noise,
                transform_draws=draws,
                steps=1,
                key=jax.random.key(seed),
                bases=range_of(digits),
            )
            for seed in range(3)
        ]
        for draws in (1, 16)
    )
    spread = [np.std([poison.how["clean_objective"] for poison in poisons]) for poisons in (few, many)]
    assert spread[1] < spread[0] / 2


def range_of(digits):
    return np.flatnonzero(digits[1] == 7)[:5]


def test_new_weights_targets_and_budgets_do_not_retrace(digits):
    counted = chex.assert_max_traces(golden.hidden, n=3)  # for the targets, in the step, and to measure
    for seed in range(3):
        targets = golden.digit_targets(digits, [1700 + seed])
        craft(digits, counted, golden.hidden_weights(seed), targets=targets, epsilon=(9 + seed) / 255, steps=3)


def test_compiled_loop_gives_the_poisons_of_the_python_loop(digits, monkeypatch):
    in_python = craft(digits, steps=8)
    monkeypatch.setattr("jaxpurify.loop.runs_in_python", lambda *trees: False)
    assert np.abs(craft(digits, steps=8).images.astype(int) - in_python.images).max() <= 1


def test_a_poisoned_linear_layer_takes_the_target_for_the_class(digits, tmp_path):
    """The attack works end to end: heads on the surrogate's own features, clean and poisoned, over ten targets."""
    images, labels = digits[0][:200], digits[1][:200]
    weights = golden.hidden_weights()
    targets = golden.digit_targets(digits, np.arange(1700, 1710))
    classes = [(label + 3) % 10 for label in targets.labels.tolist()]
    poisons = bullseye(
        golden.hidden, weights, KEY, images, labels, target=classes, targets=targets, count=10, separately=True,
        epsilon=64 / 255, steps=150, learning_rate=0.02,
    )  # fmt: skip
    features = [
        np.asarray(golden.hidden(weights, jnp.asarray(rows, jnp.float32) / 255))
        for rows in (images, targets.images, *(poison.images for poison in poisons))
    ]
    table = np.concatenate([features[0], *features[2:]])
    rows = np.tile(np.arange(200), (11, 1))
    for number, poison in enumerate(poisons):
        rows[number + 1, poison.index] = 200 + 10 * number + np.arange(10)
    table_labels = np.concatenate([labels, *(poison.labels for poison in poisons)])
    heads, _ = train_heads(table, table_labels, jax.random.split(KEY, 11), classes=10, rows=rows, epochs=40)
    answers = np.asarray(heads(jnp.asarray(features[1])).argmax(-1))
    fooled = np.mean([answers[number + 1, number] == classes[number] for number in range(10)])
    clean = np.mean(answers[0] == np.array(classes))
    assert clean <= 0.1 and fooled >= 0.5
    save_poison(tmp_path / "poison.npz", poisons[0])
    loaded = load_poison(tmp_path / "poison.npz")
    assert loaded.how == poisons[0].how
    poisoned = poison_dataset(Dataset(images, labels, tuple("0123456789")), loaded)
    np.testing.assert_array_equal(poisoned.images[loaded.index], poisons[0].images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ({"count": 500}, r"^count is 500; there are only 179 images of class 7$"),
        ({"target": 12}, r"^target is 12; the labels of this data are 0 … 9$"),
        ({"target": 5}, r"^target is 5; a target image has this label already"),
        ({"target": [7, 8]}, r"^target holds 2 classes; there are 1 groups of targets$"),
        ({"bases": np.array([5000])}, r"^bases are \(1,\) up to 5000; positions are 0 … 1796$"),
        (
            {"bases": np.zeros((2, 3), int)},
            r"^bases are \(2, 3\); one axis, or with separately a row for each of 1 targets",
        ),
        ({"bases": np.array([0])}, r"^base 0 is of class 0; poisons must be of class 7$"),
        ({"objective": "cosine"}, r"^objective is 'cosine'; known: relative, relative_squared, mean_squared$"),
        ({"optimizer": "lion"}, r"^optimizer is 'lion'; known: signed_adam, sign_then_adam, adam, sgd$"),
        ({"start": "ones"}, r"^start is 'ones'; known: zero, normal$"),
        ({"restarts": 2}, r"^restarts is 2 with start 'zero': all would be equal; use start 'normal'$"),
        ({"steps": 0}, r"^steps is 0; it must be at least 1$"),
        ({"learning_rate": 0.0}, r"^learning_rate is 0\.0; it must be above 0$"),
        ({"draws": 0}, r"^draws is 0; it must be at least 1$"),
        ({"params": []}, r"^params holds no surrogate; give at least one$"),
        (
            {"params": jnp.full((64, 32), jnp.nan)},
            r"^the objective is not finite at step 0 of 40; lower learning_rate$",
        ),
    ],
)
def test_bad_input_is_one_clear_line(digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(digits, **arguments)
    assert "\n" not in str(caught.value)


def test_what_gives_no_features_and_targets_of_another_size_are_refused(digits):
    with pytest.raises(ValueError, match=r"^apply gives \(\) for 1 images; features must be \[B, …\]"):
        craft(digits, apply=lambda params, images: images.sum())
    targets = Targets(np.zeros((1, 4, 4, 1), np.uint8), np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match=r"^targets have the shape \(4, 4, 1\); training images have \(8, 8, 1\)$"):
        craft(digits, targets=targets)
