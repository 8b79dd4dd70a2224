"""Gradient matching on a real surrogate: losses fall, options do what they say, budgets and inputs hold."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.attack import crafting
from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.gradient_matching import gradient_matching
from jaxpurify.attack.matching import Passenger
from jaxpurify.attack.matching_objective import Matching, target_gradients
from jaxpurify.attack.targeted import split_over
from jaxpurify.attack.view import View
from jaxpurify.data.augment import ContinuousShift
from jaxpurify.data.poison import Targets, load_poison, save_poison
from jaxpurify.sharding import data_mesh

SETTINGS = {"target": 3, "count": 24, "steps": 40, "restarts": 2, "epsilon": 16 / 255, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def targets(digits):
    images, labels = digits
    found = np.flatnonzero(labels[1000:] == 8)[:2] + 1000
    return Targets(images[found], labels[found], found)


def craft(surrogate, digits, targets, seed=0, key=None, **options):
    apply, params = surrogate
    images, labels = digits[0][:1000], digits[1][:1000]
    options = SETTINGS | {"targets": targets} | options
    return gradient_matching(apply, params, jax.random.key(seed) if key is None else key, images, labels, **options)


def last(poison):
    return poison.how["last_losses"][poison.how["chosen_restart"]]


def test_matching_loss_falls_within_the_budget(surrogate, digits, targets):
    poison = craft(surrogate, digits, targets)
    assert last(poison) < 0.5 * min(poison.how["first_losses"])
    assert last(poison) == min(poison.how["last_losses"])
    labels = digits[1][:1000]
    assert (labels[poison.index] == 3).all() and (poison.labels == 3).all() and len(poison) == 24
    change = poison.images.astype(int) - digits[0][poison.index]
    assert 8 < np.abs(change).max() <= 16


def test_stored_poisons_have_the_gradient_that_was_reported(surrogate, digits, targets):
    """Measured with nothing but `jax.grad` on the stored images."""
    apply, params = surrogate
    poison = craft(surrogate, digits, targets)

    def gradient(images, labels):
        def loss(params):
            logits = apply(params, jnp.asarray(images, jnp.float32) / 255)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(jax.grad(loss)(params))])

    wanted = gradient(targets.images, np.full(2, 3))

    def distance(images):
        found = gradient(images, poison.labels)
        return 1 - found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)

    assert distance(poison.images) == pytest.approx(last(poison), abs=0.01)
    assert distance(poison.images) < 0.5 * distance(digits[0][poison.index])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "scalar_product"},
        {"loss": "similarity-narrow"},
        {"loss": "top5-similarity"},
        {"loss": "SE"},
        {"criterion": "cw2"},
        {"per_target": True},
        {"augment": ContinuousShift(1, fill=0.0, flip=False)},
        {"optimizer": "adam", "decay": False},
        {"loss": Passenger(repel_weight=0.2)},
        {"loss_weight": 0.1},
        {"private_clip": 1.0, "private_noise": 0.001},
        {"micro_batch": 10, "match": "minibatch"},
        {"transform_draws": 2, "transform": lambda keys, images: images * 0.9},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_lowers_its_objective(surrogate, digits, targets, options):
    poison = craft(surrogate, digits, targets, steps=20, restarts=1, **options)
    first = poison.how["first_losses"][0]
    assert last(poison) < first - 0.02 * abs(first)


def test_restarts_differ_and_the_best_is_kept(surrogate, digits, targets):
    two, one = (craft(surrogate, digits, targets, steps=5, restarts=restarts) for restarts in (3, 1))
    assert len(set(two.how["last_losses"])) == 3
    assert two.how["last_losses"][0] == pytest.approx(one.how["last_losses"][0], rel=1e-5)
    assert two.how["chosen_restart"] == int(np.argmin(two.how["last_losses"]))


def test_restarts_side_by_side_or_one_after_another_are_the_same(surrogate, digits, targets):
    results = [craft(surrogate, digits, targets, steps=2, restarts=4, restarts_together=size) for size in (4, 2, 1)]
    for other in results[1:]:
        np.testing.assert_allclose(other.how["last_losses"], results[0].how["last_losses"], rtol=1e-4)
        assert (np.abs(other.images.astype(int) - results[0].images) > 1).mean() < 0.01


@pytest.mark.parametrize(("restarts", "together", "devices"), [(4, None, 4), (4, 2, 2), (6, None, 3), (3, None, 3)])
def test_devices_share_restarts(surrogate, digits, targets, monkeypatch, restarts, together, devices):
    options = {"steps": 3, "restarts": restarts, "restarts_together": together}
    options |= {"augment": ContinuousShift(1, fill=0.0, flip=False)}
    used = []

    best = crafting.best

    def counted(state, values):
        used.append(len(state.delta.devices()))
        return best(state, values)

    monkeypatch.setattr(crafting, "best", counted)
    shared = craft(surrogate, digits, targets, **options)
    everything = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: everything[:1])
    alone = craft(surrogate, digits, targets, **options)
    assert used == [devices, 1]
    np.testing.assert_allclose(shared.how["last_losses"], alone.how["last_losses"], rtol=1e-4)
    assert (np.abs(shared.images.astype(int) - alone.images) > 1).mean() < 0.01


@pytest.mark.parametrize("side_by_side", [None, 2])
def test_separate_targets_are_those_crafted_alone(surrogate, digits, targets, side_by_side):
    options = {"steps": 8, "augment": ContinuousShift(1, fill=0.0, flip=False)}
    each = {"target": [3, 5], "separately": True, "targets_together": side_by_side}
    reports = []
    together = craft(surrogate, digits, targets, **options, **each, progress=lambda *report: reports.append(report))
    assert reports[-1] == (16, 16) and reports == sorted(reports)
    assert [poison.target for poison in together] == [poison.how["base"] for poison in together] == [3, 5]
    for number, poison in enumerate(together):
        rows = slice(number, number + 1)
        one = Targets(targets.images[rows], targets.labels[rows], targets.index[rows])
        key = jax.random.fold_in(jax.random.key(0), number)
        alone = craft(surrogate, digits, one, key=key, target=poison.target, **options)
        np.testing.assert_array_equal(poison.index, alone.index)
        np.testing.assert_array_equal(poison.targets.images, one.images)
        np.testing.assert_allclose(poison.how["last_losses"], alone.how["last_losses"], rtol=2e-3)
        # A sign of a gradient near 0 may differ where sums run in another order.
        assert (poison.images != alone.images).mean() < 0.01


def test_micro_batches_and_engines_craft_the_same(surrogate, digits, targets):
    """One step: later ones amplify a sign that rounding turns."""
    whole, parts, reverse = (
        craft(surrogate, digits, targets, steps=2, **options)
        for options in ({}, {"micro_batch": 7}, {"engine": "reverse"})
    )
    for other in (parts, reverse):
        np.testing.assert_allclose(other.how["last_losses"], whole.how["last_losses"], rtol=1e-3)
        assert (np.abs(other.images.astype(int) - whole.images) > 1).mean() < 0.01


def test_one_minibatch_is_all(surrogate, digits, targets):
    options = ({"match": "minibatch", "micro_batch": 24}, {"match": "all"})
    one, all_rows = (craft(surrogate, digits, targets, steps=3, **each) for each in options)
    np.testing.assert_array_equal(one.images, all_rows.images)


def test_members_of_other_structures_have_their_own_output_layer(surrogate, digits, targets):
    """Its tensors are at other places among the leaves."""
    apply, params = surrogate
    names = sorted(params)
    turned = {f"{len(names) - place:02}": params[name] for place, name in enumerate(names)}

    def other(params, images):
        return apply({name: params[f"{len(names) - place:02}"] for place, name in enumerate(names)}, images)

    def first_loss(members):
        options = {"loss": "similarity-narrow", "steps": 1, "restarts": 1}
        return craft(tuple(zip(*members, strict=True)), digits, targets, **options).how["first_losses"][0]

    alone = [first_loss([member]) for member in ((apply, params), (other, turned))]
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)
    assert first_loss([(apply, params), (other, turned)]) == pytest.approx(sum(alone), rel=1e-4)


def test_poisons_of_a_third_class(surrogate, digits, targets):
    poison = craft(surrogate, digits, targets, base=5, steps=1)
    assert poison.how["base"] == 5 and poison.target == 3 and (poison.labels == 5).all()


def test_poisons_of_any_class(surrogate, digits, targets):
    poison = craft(surrogate, digits, targets, base="any", count=60, steps=15)
    labels = digits[1][:1000][poison.index]
    assert len(set(labels)) > 5 and poison.how["base"] == "any"
    np.testing.assert_array_equal(poison.labels, labels)
    assert last(poison) < min(poison.how["first_losses"])


def test_bases_can_be_given(surrogate, digits, targets):
    bases = np.flatnonzero(digits[1][:1000] == 3)[[9, 3, 5, 3]]
    poison = craft(surrogate, digits, targets, steps=1, count=None, bases=bases)
    np.testing.assert_array_equal(poison.index, bases[:3])  # a data set has room for one poison of an image


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transform": lambda keys, images: images * 0.9, "micro_batch": 12},
        {"hidden": lambda params, images: images.mean((1, 2)), "hidden_weight": 100.0, "loss_weight": 0.1},
        {"private_clip": 1.0, "private_noise": 0.01},
        {"match": "minibatch", "micro_batch": 12},
    ],
)
def test_poisons_over_four_devices(surrogate, digits, targets, options, monkeypatch):
    split = []

    def watched(*given, **how):
        found = split_over(*given, **how)
        split.append(len(found[2].delta.sharding.device_set))
        return found

    monkeypatch.setattr(importlib.import_module("jaxpurify.attack.gradient_matching"), "split_over", watched)
    one, four = (craft(surrogate, digits, targets, steps=3, mesh=mesh, **options) for mesh in (None, data_mesh()))
    assert split == [4]
    np.testing.assert_allclose(four.how["first_losses"], one.how["first_losses"], rtol=1e-5)
    np.testing.assert_allclose(four.how["last_losses"], one.how["last_losses"], rtol=1e-3)
    assert (np.abs(four.images.astype(int) - one.images) > 1).mean() < 0.01
    with pytest.raises(ValueError, match=r"^count is 10; split over 4 devices it must be a multiple of them$"):
        craft(surrogate, digits, targets, count=10, mesh=data_mesh())


def test_ensembles_add_their_losses(surrogate, digits, targets):
    apply, params = surrogate
    twice = craft((apply, (params, params)), digits, targets, steps=4)
    once = craft(surrogate, digits, targets, steps=4)
    np.testing.assert_allclose(twice.how["last_losses"], 2 * np.array(once.how["last_losses"]), rtol=1e-4)
    assert twice.how["members"] == 2

    def halved(params, images):
        return apply(jax.tree.map(lambda leaf: leaf / 2, params), images)

    # The same function of twice the parameters has half the gradient, and the same cosine.
    mixed = craft(((apply, halved), [params, jax.tree.map(lambda leaf: 2 * leaf, params)]), digits, targets, steps=4)
    np.testing.assert_allclose(mixed.how["first_losses"], 2 * np.array(once.how["first_losses"]), rtol=1e-4)
    with pytest.raises(ValueError, match=r"^apply has 1 functions for 2 members of the ensemble$"):
        craft(((apply,), (params, params)), digits, targets)


def test_hidden_poisons_keep_their_features(surrogate, digits, targets):
    _, params = surrogate

    def features(params, images):
        return jnp.tanh(images.reshape(len(images), -1) @ params["first"] + params["shift"][None])

    def moved(poison):
        both = (jnp.asarray(each, jnp.float32) / 255 for each in (poison.images, digits[0][poison.index]))
        one, other = (features(params, images) for images in both)
        return float(jnp.square(one - other).mean())

    plain = craft(surrogate, digits, targets)
    hidden = craft(surrogate, digits, targets, hidden=features, hidden_weight=20.0)
    assert moved(hidden) < 0.5 * moved(plain)


def test_each_member_has_its_own_hidden_features(surrogate, digits, targets):
    _, params = surrogate

    def features(params, images):
        return jnp.tanh(images.reshape(len(images), -1) @ params["first"] + params["shift"][None])

    def thrice(params, images):
        return 3 * features(params, images)

    ensemble = (surrogate[0], (params, params))
    options = {"steps": 1, "restarts": 1, "hidden_weight": 50.0}
    none, both, mixed = (
        craft(ensemble, digits, targets, **options, **hidden).how["first_losses"][0]
        for hidden in ({}, {"hidden": features}, {"hidden": [features, thrice]})
    )
    # Squared distances: 1 and 1 of one callable for both, 1 and 9 of one each.
    assert both > none + 0.01
    assert mixed - none == pytest.approx(5 * (both - none), rel=1e-3)
    with pytest.raises(ValueError, match=r"^hidden has 1 functions for 2 members of the ensemble$"):
        craft(ensemble, digits, targets, hidden=(features,))


def test_hidden_distances_of_a_mini_batch_are_its_own_mean(surrogate, digits, targets):
    """Mini-batches of 16 and 8 rows: a row of the smaller one has twice the share of one of the larger."""
    apply, params = surrogate
    apply = jax.tree_util.Partial(apply)
    index = np.flatnonzero(digits[1][:1000] == 3)[:24]
    rows = jnp.asarray(digits[0][index]), jnp.asarray(digits[1][index]), jnp.asarray(index, jnp.int32)
    crafting = Crafting(*rows, jax.random.key(0), jnp.float32(0.1), jnp.float32(0.01), 1)
    delta = 0.05 * jax.random.normal(jax.random.key(2), (24, 8, 8, 1))

    def hidden_part(match):
        """What `hidden` adds to the gradient."""
        common = (apply,), (params,), wanted, Passenger("scalar_product"), View()
        with_and_without = [
            jax.jit(Matching.__call__)(
                Matching(*common, hidden=hidden, hidden_weight=jnp.float32(10), match=match, micro_batch=16),
                delta,
                jax.random.key(1),
                crafting,
            )[1]
            for hidden in ((apply,), None)
        ]
        return np.asarray(with_and_without[0] - with_and_without[1])

    seen = jnp.asarray(targets.images, jnp.float32) / 255
    wanted = target_gradients((apply,), (params,), seen, jnp.full(2, 3))
    whole, parts = hidden_part("all"), hidden_part("minibatch")
    np.testing.assert_allclose(parts[:16], whole[:16] * 24 / 16, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(parts[16:], whole[16:] * 24 / 8, rtol=1e-3, atol=1e-5)


def test_self_betrayal_uses_the_targets_own_class(surrogate, digits, targets):
    poison = craft(surrogate, digits, targets, criterion="unxent", steps=10)
    assert poison.how["base"] == 8 and (poison.labels == 8).all() and poison.target == 3
    mixed = Targets(targets.images, np.array([8, 1]), targets.index)
    with pytest.raises(ValueError, match=r"^targets are of several classes; with criterion 'unxent' base must "):
        craft(surrogate, digits, mixed, criterion="unxent")


def test_transform_is_between_poison_and_surrogate(surrogate, digits, targets):
    apply, params = surrogate

    def halve(keys, images):
        return images / 2

    def halved(params, images):
        return apply(params, jnp.where(images.shape[0] == 2, images, images / 2))

    adaptive, through = (
        craft(surrogate, digits, targets, steps=3, transform=halve),
        craft((halved, params), digits, targets, steps=3),
    )
    np.testing.assert_allclose(adaptive.how["first_losses"], through.how["first_losses"], rtol=1e-4)
    assert adaptive.how["adaptive"] and not through.how["adaptive"]


def test_new_weights_targets_and_rates_do_not_retrace(surrogate, digits, targets):
    apply, params = surrogate
    counted = chex.assert_max_traces(apply, n=6)  # shape, target gradient, and the passes of one step
    for seed in range(3):
        weights = jax.tree.map(lambda leaf, seed=seed: leaf + 0.01 * seed, params)
        options = {"epsilon": (20 + seed) / 255, "learning_rate": 0.01 + 0.01 * seed, "steps": 3}
        craft((counted, weights), digits, targets, seed=seed, **options)


def test_poison_carries_its_targets_through_a_file(surrogate, digits, targets, tmp_path):
    poison = craft(surrogate, digits, targets, steps=2)
    save_poison(tmp_path / "poison.npz", poison)
    loaded = load_poison(tmp_path / "poison.npz")
    np.testing.assert_array_equal(loaded.targets.index, targets.index)
    assert loaded.how == poison.how and loaded.target == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; "),
        ({"count": 500}, r"^count is 500; there are only \d+ images of class 3$"),
        ({"target": 8}, r"^target is 8; a target image has this label already, there is nothing to change$"),
        ({"target": 11}, r"^target is 11; the labels of this data are 0 … 9$"),
        ({"base": 10}, r"^base is 10; no training image has this label, and it is not 'any'$"),
        ({"loss": "cosine"}, r"^loss is 'cosine'; known: similarity, "),
        ({"criterion": "ce"}, r"^criterion is 'ce'; known: xent, cw, cw2, unxent$"),
        ({"match": "some"}, r"^match is 'some'; known: all, minibatch$"),
        ({"engine": "three-pass"}, r"^engine is 'three-pass'; known: two-pass, reverse$"),
        ({"restarts_together": 3}, r"^restarts_together is 3; it must divide the 2 restarts$"),
        ({"steps": 0}, r"^steps is 0 and restarts is 2; both must be at least 1$"),
        ({"learning_rate": 0.0}, r"^learning_rate is 0\.0; it must be above 0 and finite$"),
        ({"base": 8}, r"^base is 8; a target image is of this class, and poisons must be of another one$"),
        ({"base": "third"}, r"^base is 'third'; no training image has this label, and it is not 'any'$"),
        ({"private_noise": 0.5}, r"^private_noise is 0\.5; it goes with private_clip, "),
        ({"match": "minibatch"}, r"^match is 'minibatch'; micro_batch must say how many poisons are matched together$"),
        ({"engine": "reverse", "micro_batch": 5}, r"^micro_batch is 5; engine 'reverse' keeps all rows in memory that"),
        ({"targets_together": 2}, r"^targets_together is 2; it goes with separately$"),
        ({"bases": np.array([3])}, r"^count is 24 and fraction is None; bases name the images already$"),
        ({"separately": True, "target": [3]}, r"^target holds 1 classes; there are 2 groups of targets$"),
        ({"separately": True, "targets_together": 0}, r"^targets_together is 0; it must be at least 1$"),
        ({"separately": True, "mesh": data_mesh()}, r"^mesh splits the poisons of one target; with separately, craft "),
        ({"optimizer": "sgd"}, r"^optimizer is 'sgd'; known: sign_then_adam, adam$"),
        ({"private_clip": 0.0}, r"^private_clip is 0\.0 and private_noise is 0\.0; above 0, and 0 or more$"),
        ({"micro_batch": 0}, r"^micro_batch is 0; it must be at least 1$"),
        ({"learning_rate": float("inf")}, r"^learning_rate is inf; it must be above 0 and finite$"),
    ],
)
def test_bad_input_is_one_clear_line(surrogate, digits, targets, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(surrogate, digits, targets, **options)
    assert "\n" not in str(caught.value)


def test_a_surrogate_without_finite_gradients_is_refused(surrogate, digits, targets):
    apply, params = surrogate
    broken = params | {"shift": jnp.full(32, jnp.nan)}
    with pytest.raises(ValueError, match=r"^the objective is not finite at step 0 of 3; lower learning_rate$"):
        craft((apply, broken), digits, targets, steps=3)


def test_targets_of_another_shape_are_refused(surrogate, digits):
    with pytest.raises(ValueError, match=r"^targets have the shape \(9, 9, 1\); training images have \(8, 8, 1\)$"):
        craft(surrogate, digits, Targets(np.zeros((1, 9, 9, 1), np.uint8), np.array([8]), np.array([0])))


def test_random_views_in_uneven_micro_batches(surrogate, digits, targets):
    """The same draws for an image in both passes and in every partition."""
    options = {"augment": ContinuousShift(1, fill=0.0, flip=False), "steps": 1, "count": 23}
    whole, parts = (craft(surrogate, digits, targets, micro_batch=size, **options) for size in (None, 5))
    np.testing.assert_allclose(parts.how["first_losses"], whole.how["first_losses"], rtol=1e-4)
    np.testing.assert_array_equal(parts.images, whole.images)
