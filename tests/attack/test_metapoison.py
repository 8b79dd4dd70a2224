"""MetaPoison: the unrolled objective against recorded values, both published forms on a real surrogate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.metapoison import metapoison
from jaxpurify.attack.unrolled import Unrolled
from jaxpurify.data.augment import ContinuousShift
from jaxpurify.data.poison import Targets
from tests.attack.matching_golden import GOLDEN, POISON_LABELS, network, parameters, rows

SETTINGS = {"target": 3, "count": 20, "steps": 15, "epsilon": 16 / 255, "learning_rate": 0.02, "criterion": "xent"}
ORIGINAL = {
    "criterion": "cw2",
    "depths": "mean",
    "clean_count": 30,
    "later_poisons": False,
    "optimizer": "adam",
    "learning_rate": 200 / 255,
}


def test_recorded_loss_and_gradient():
    """The recorded inputs are no images, so that they enter as delta on black ones; the target likewise."""
    targets = rows((2, 6), 2.2)

    def apply(params, images):
        # Black stored targets stand for the recorded ones.
        return network(params, targets if len(images) == 2 else images)

    crafting = Crafting(
        jnp.zeros((8, 1, 1, 6), jnp.uint8),
        jnp.asarray(POISON_LABELS),
        jnp.arange(8),
        jax.random.key(0),
        jnp.float32(1),
        jnp.float32(1),
        1,
    )
    wanted = jnp.zeros(2, jnp.int32)
    objective = Unrolled(
        (jax.tree_util.Partial(apply),), (parameters(),), jnp.zeros((2, 1, 1, 6), jnp.uint8), wanted, unroll=2
    )
    value, gradient = objective(rows((8, 6), 1.1), jax.random.key(1), crafting)
    recorded = GOLDEN["T2"]["metapoison_K2_lr0p1"]
    np.testing.assert_allclose(value, recorded["loss"], rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(gradient.ravel()), recorded["gradnorm"], rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0, 0, 0], recorded["g00"], atol=1e-8)
    np.testing.assert_allclose(gradient[7, 0, 0, 5], recorded["g75"], atol=1e-8)


@pytest.fixture(scope="module")
def targets(digits):
    images, labels = digits
    found = np.flatnonzero(labels[1000:] == 8)[:2] + 1000
    return Targets(images[found], labels[found], found)


def craft(surrogate, digits, targets, seed=0, **options):
    apply, params = surrogate
    images, labels = digits[0][:1000], digits[1][:1000]
    return metapoison(apply, params, jax.random.key(seed), images, labels, **SETTINGS | {"targets": targets} | options)


@pytest.mark.parametrize(
    "options",
    [{}, ORIGINAL, {"restarts": 2}, {"clean_count": 10}, {"augment": ContinuousShift(1, fill=0.0, flip=False)}],
    ids=["framework", "original", "restarts", "clean", "augment"],
)
def test_objective_falls_within_the_budget(surrogate, digits, targets, options):
    poison = craft(surrogate, digits, targets, **options)
    assert min(poison.how["last_losses"]) < min(poison.how["first_losses"]) - 0.03
    change = poison.images.astype(int) - digits[0][poison.index]
    assert 8 < np.abs(change).max() <= 16
    assert (poison.labels == 3).all() and poison.targets is targets


def test_training_on_the_stored_poisons_does_what_was_promised(surrogate, digits, targets):
    """K plain steps on the stored images give the reported objective."""
    apply, params = surrogate
    poison = craft(surrogate, digits, targets, unroll=3)

    def loss(params, images, labels):
        log_probability = jax.nn.log_softmax(apply(params, jnp.asarray(images, jnp.float32) / 255))
        return -log_probability[jnp.arange(len(images)), jnp.asarray(labels)].mean()

    for _ in range(3):
        gradient = jax.grad(loss)(params, poison.images, poison.labels)
        params = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, gradient)
    assert float(loss(params, targets.images, np.full(2, 3))) == pytest.approx(poison.how["last_losses"][0], abs=0.03)


def test_members_move_along_their_trajectory(surrogate, digits, targets):
    seen = []

    def refresh(applies, members, step, key):
        seen.append((step, float(jax.random.uniform(key))))
        return applies, [jax.tree.map(lambda leaf: 0.99 * leaf, member) for member in members]

    moved = craft(surrogate, digits, targets, steps=7, refresh=refresh, refresh_every=3)
    assert [step for step, _ in seen] == [3, 6] and seen[0][1] != seen[1][1]
    stayed, same = (
        craft(surrogate, digits, targets, steps=7, **options)
        for options in ({}, {"refresh": lambda *given: given[:2], "refresh_every": 3})
    )
    np.testing.assert_array_equal(same.images, stayed.images)
    assert moved.how["last_losses"] != stayed.how["last_losses"]
    assert moved.how["refreshed"] and not stayed.how["refreshed"]


@pytest.mark.parametrize("side_by_side", [None, 2])
def test_separate_targets_are_those_crafted_alone(surrogate, digits, targets, side_by_side):
    apply, params = surrogate
    given = {"steps": 5, "refresh": lambda *given: given[:2], "refresh_every": 3}
    each = {"target": [3, 5], "separately": True, "targets_together": side_by_side}
    together = craft(surrogate, digits, targets, **given, **each)
    for number, (poison, target) in enumerate(zip(together, (3, 5), strict=True)):
        rows = slice(number, number + 1)
        one = Targets(targets.images[rows], targets.labels[rows], targets.index[rows])
        key, options = jax.random.fold_in(jax.random.key(0), number), SETTINGS | given | {"target": target}
        alone = metapoison(apply, params, key, digits[0][:1000], digits[1][:1000], targets=one, **options)
        np.testing.assert_array_equal(poison.index, alone.index)
        np.testing.assert_allclose(poison.how["last_losses"], alone.how["last_losses"], rtol=2e-3)
        assert (poison.images != alone.images).mean() < 0.01
        assert poison.target == poison.how["base"] == target


def test_ensembles_add_up(surrogate, digits, targets):
    apply, params = surrogate
    one, two = (craft((apply, members), digits, targets, steps=1) for members in (params, (params, params)))
    np.testing.assert_allclose(two.how["first_losses"], 2 * np.array(one.how["first_losses"]), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; "),
        ({"unroll": 0}, r"^unroll is 0; it must be at least 1$"),
        ({"depths": "all"}, r"^depths is 'all'; known: last, mean$"),
        ({"later_poisons": False}, r"^later_poisons is False and clean_count is 0; later steps would see no image$"),
        ({"clean_count": 2000}, r"^clean_count is 2000; there are 980 clean images$"),
        ({"base": 8}, r"^base is 8; a target image is of this class, and poisons must be of another one$"),
        ({"targets_together": 1}, r"^targets_together is 1; it goes with separately$"),
        ({"refresh_every": 0}, r"^refresh_every is 0 and inner_rate is 0\.1; both must be above 0$"),
        ({"count": 500}, r"^count is 500; there are only \d+ images of class 3$"),
        ({"target": 8}, r"^target is 8; a target image has this label already, there is nothing to change$"),
        ({"criterion": "ce"}, r"^criterion is 'ce'; known: xent, cw, cw2, unxent$"),
    ],
)
def test_bad_input_is_one_clear_line(surrogate, digits, targets, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(surrogate, digits, targets, **options)
    assert "\n" not in str(caught.value)
