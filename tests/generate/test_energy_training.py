"""Training an energy: the recorded loss, one update by hand, the bank, divergence."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.data.image import to_float
from jaxpurify.generate import energy as training
from jaxpurify.generate.energy import (
    HILL,
    EnergyRecipe,
    EnergyState,
    EnergyStep,
    energy_optimizer,
    start_bank,
    train_energy,
    written_back,
)
from jaxpurify.networks import freeze, from_torch
from jaxpurify.networks.freeze import Frozen
from jaxpurify.purify.langevin import Langevin, langevin_update
from jaxpurify.random import named
from jaxpurify.sharding import data_mesh
from jaxpurify.train.state import TrainingDiverged
from tests.generate.conftest import SmallEnergy
from tests.networks.golden import PARAMETERS, signed_images, tensors


def key(seed=4):
    return jax.random.key(seed)


SMALL = EnergyRecipe(
    steps=8, batch_size=6, learning_rate=1e-3, langevin_steps=3, step_size=0.01, temperature=0.01, bank_size=20
)


def make(model, recipe, images):
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.array, nnx.as_pure(params))
    optimizer = energy_optimizer(recipe)
    bank = start_bank(key(), images, recipe)
    zero = jnp.zeros((), jnp.int32)
    state = EnergyState(params, optimizer.init(params), bank, zero, zero)
    return EnergyStep(graphdef, optimizer, recipe, None), copy(state)


def copy(state):
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("name", ["conv_energy", "sngan_energy"])
def test_the_recorded_loss(name):
    golden = PARAMETERS[name]
    model = from_torch(name, tensors(name))
    update, energy = jax.jit(langevin_update), freeze(model)
    noises = np.random.RandomState(11).standard_normal((5, 4, 3, 32, 32)).astype(np.float32).transpose(0, 1, 3, 4, 2)
    data = chains = (signed_images() + 1) / 2
    for noise in noises:
        chains = update(energy, chains, jnp.asarray(noise), 0.0125 / 2, 1e-4)
    recipe = EnergyRecipe(batch_size=4, bank_size=4)
    step, state = make(model, recipe, np.zeros((4, 32, 32, 3), np.uint8))
    _, metrics = training._learn(step, state, key(), data, chains, jnp.arange(4))
    np.testing.assert_allclose(metrics["loss"], golden["loss_(x0,x5)_f64"], rtol=1e-4)
    np.testing.assert_allclose(metrics["gap"], golden["loss_(x0,x5)_f64"] * 1e-4, rtol=1e-4)


def test_images_are_augmented_before_they_are_contrasted(digits):
    step, state = make(SmallEnergy(), SMALL, digits)
    step = dataclasses.replace(step, augment=lambda keys, images: jnp.full_like(images, 0.5))
    positive = training._draw(step, state.bank, key(), jnp.arange(6), jnp.asarray(digits))[0]
    assert np.abs(positive - 0.5).max() < 6 * SMALL.data_noise


def test_devices_that_share_the_chains_do_not_change_the_result(digits):
    results = [
        train_energy(SmallEnergy(), digits, key(), recipe=dataclasses.replace(SMALL, steps=3), mesh=mesh)
        for mesh in (None, data_mesh(jax.devices()[:3]))
    ]
    for one, shared in zip(*(jax.tree.leaves(model.state) for model, _ in results), strict=True):
        np.testing.assert_array_equal(one, shared)
    with pytest.raises(ValueError, match=r"^batch_size=6 is no multiple of the 4 devices$"):
        train_energy(SmallEnergy(), digits, key(), recipe=SMALL, mesh=data_mesh())


def test_one_update_is_adam_on_the_contrast_with_fixed_chains(digits):
    step, state = make(SmallEnergy(), SMALL, digits)
    rows = jnp.arange(6)
    positive, slots, start, keys = training._draw(step, state.bank, key(), rows, jnp.asarray(digits))
    np.testing.assert_array_equal(start, state.bank[slots])
    noise = jax.random.normal(named(key(), "data"), positive.shape)
    np.testing.assert_allclose(positive, to_float(digits[:6]) + SMALL.data_noise * noise, atol=1e-6)

    def chain(params):
        return Langevin(Frozen(params, step.graphdef), SMALL.step_size, SMALL.temperature, 3)(keys, start)

    def loss(params, negative):
        energy = Frozen(params, step.graphdef)
        return (energy(positive).mean() - energy(negative).mean()) / SMALL.temperature

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params, chain(state.params))
    optimizer = optax.adam(1e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(state.params))
    expected = optax.apply_updates(state.params, updates)
    after, metrics = step(copy(state), key(), rows, jnp.asarray(digits))
    ends = chain(state.params)
    slope = jax.grad(lambda images: Frozen(state.params, step.graphdef)(images).sum())(ends)
    length = np.sqrt(np.square(slope).sum((1, 2, 3))).mean()
    size = SMALL.step_size * np.sqrt(ends[0].size)
    np.testing.assert_allclose(metrics["drift"], SMALL.step_size**2 / 2 / SMALL.temperature * length / size, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), after.params, expected)
    assert int(after.step) == 1
    # A gradient through the chain would be another one: this test can tell.
    through = jax.jit(jax.grad(lambda params: loss(params, chain(params))))(state.params)
    assert np.abs(through["conv"]["kernel"] - gradient["conv"]["kernel"]).max() > 1e-3


def test_restarts_halve_the_update(digits):
    step, state = make(SmallEnergy(), SMALL, digits)
    moved = []
    for restarts in (0, 1, 2):
        start = dataclasses.replace(copy(state), restarts=jnp.array(restarts, jnp.int32))
        after, _ = step(start, key(), jnp.arange(6), jnp.asarray(digits))
        moved.append(np.asarray(after.params["head"]["kernel"] - state.params["head"]["kernel"]))
    np.testing.assert_allclose(moved[1], moved[0] / 2, rtol=1e-3)
    np.testing.assert_allclose(moved[2], moved[0] / 4, rtol=2e-3)


def test_the_bank_keeps_chain_ends_in_distinct_slots(digits):
    recipe = dataclasses.replace(SMALL, rejuvenation=0.0)
    step, state = make(SmallEnergy(), recipe, digits)
    before = np.asarray(state.bank)
    _, slots, start, keys = training._draw(step, state.bank, key(), jnp.arange(6), jnp.asarray(digits))
    energy = Frozen(state.params, step.graphdef)
    ends = Langevin(energy, recipe.step_size, recipe.temperature, 3)(keys, start)
    after, _ = step(copy(state), key(), jnp.arange(6), jnp.asarray(digits))
    slots = np.asarray(slots)
    assert len(np.unique(slots)) == 6 and slots.max() < 20
    np.testing.assert_allclose(after.bank[slots], ends, atol=1e-6)
    untouched = np.setdiff1d(np.arange(20), slots)
    np.testing.assert_array_equal(np.asarray(after.bank)[untouched], before[untouched])
    assert np.abs(np.asarray(after.bank)[slots] - before[slots]).max((1, 2, 3)).min() > 1e-3
    other = training._draw(step, state.bank, jax.random.key(9), jnp.arange(6), jnp.asarray(digits))[1]
    assert set(np.asarray(other)) != set(slots)


def test_rejuvenated_slots_are_data_with_another_noise():
    positive = jnp.broadcast_to(jnp.linspace(0, 1, 4000)[:, None, None, None], (4000, 2, 2, 1))  # no two rows alike
    negative = jnp.full((4000, 2, 2, 1), -7.0)
    recipe = EnergyRecipe(data_noise=0.1)
    kept = written_back(key(), positive, negative, dataclasses.replace(recipe, rejuvenation=0.0))
    np.testing.assert_array_equal(kept, negative)
    renewed = written_back(key(), positive, negative, dataclasses.replace(recipe, rejuvenation=1.0))
    noise = np.asarray(renewed - positive)
    assert abs(noise.mean()) < 4 * 0.1 / np.sqrt(noise.size)
    assert abs(noise.std() / 0.1 - 1) < 4 * np.sqrt(0.5 / noise.size)
    mixed = np.asarray(written_back(key(), positive, negative, recipe))
    whole = (mixed == -7.0).all((1, 2, 3)) | (mixed != -7.0).all((1, 2, 3))
    assert whole.all()  # slots are renewed as a whole
    share = (mixed[:, 0, 0, 0] != -7.0).mean()
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_the_bank_starts_from_data_or_noise(digits):
    recipe = EnergyRecipe(batch_size=5, bank_size=150, data_noise=0.01)
    bank = np.asarray(start_bank(key(), digits, recipe))
    distance = np.sqrt(((bank[:, None] - digits[None] / 255) ** 2).mean((2, 3, 4)))
    nearest = distance.argmin(1)
    np.testing.assert_allclose(distance.min(1), 0.01, rtol=0.5)
    assert len(np.unique(nearest)) > 140  # without repetition where there are enough images
    uniform = np.asarray(start_bank(key(), digits, dataclasses.replace(recipe, bank_start="noise")))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 / np.sqrt(12 * uniform.size)
    assert start_bank(key(), digits, EnergyRecipe(batch_size=5, bank_size=500)).shape == (500, 8, 8, 1)


def test_training_lowers_the_energy_of_data_against_noise(digits):
    recipe = dataclasses.replace(SMALL, steps=60, batch_size=32, bank_size=64, learning_rate=3e-3, bank_start="noise")
    model = SmallEnergy()
    energy, history = train_energy(model, digits, key(), recipe=recipe, interval=20)
    assert set(history) == {"loss", "gap", "drift", "spread"}
    assert all(values.shape == (3,) for values in history.values())
    energies = jax.jit(lambda energy, images: energy(images))
    noise = jax.random.uniform(key(), (200, 8, 8, 1))

    def gap(energy):
        return float((energies(energy, noise) - energies(energy, jnp.asarray(to_float(digits)))).mean())

    assert gap(energy) > max(0, gap(freeze(model)))
    again, _ = train_energy(model, digits, key(), recipe=recipe, interval=30)
    jax.tree.map(np.testing.assert_array_equal, again.state, energy.state)


def test_exploding_training_is_an_error(digits, tmp_path):
    recipe = dataclasses.replace(SMALL, learning_rate=1e4)
    with pytest.raises(TrainingDiverged, match=r"diverged between steps 0 and 4: .*; no checkpoint was kept"):
        train_energy(SmallEnergy(), digits, key(), recipe=recipe, interval=4, directory=tmp_path)


@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("loss", np.nan, "a metric is not finite"),
        ("spread", 3.0, "chains left the range of images"),
        ("drift", 1e3, "the gradient is 1e\\+03 times the noise"),
        ("drift", 1e-9, "the gradient vanished"),
    ],
)
def test_what_counts_as_unhealthy(metric, value, message):
    healthy = {"loss": np.ones(3), "gap": np.ones(3), "spread": np.full(3, 0.4), "drift": np.full(3, 0.5)}
    assert training.unhealthy(healthy) is None
    problem = training.unhealthy({**healthy, metric: np.full(3, value)})
    assert problem is not None and np.char.find(problem, message.replace("\\", "")) >= 0


def test_chains_from_noise_may_be_far_from_the_data(digits):
    """They are at first, by thousands of temperatures, and nothing is wrong with that."""
    far = {"loss": np.full(3, -4e3), "gap": np.ones(3), "spread": np.full(3, 0.4), "drift": np.full(3, 0.5)}
    near = {"loss": 10.0}
    problem = training.unhealthy(far, near)
    assert problem is not None and "4e+03 temperatures apart" in problem
    assert training.unhealthy(far, near, training.APART["noise"]) is None
    recipe = dataclasses.replace(
        HILL, steps=8, batch_size=16, bank_size=32, langevin_steps=5, temperature=1e-7, step_size=1e-4
    )
    _, history = train_energy(SmallEnergy(), digits, key(), recipe=recipe, interval=4)
    assert np.abs(history["loss"]).max() > 1000


def test_narrow_networks_may_be_far_apart_before_they_learn(digits):
    """Nothing that a lower learning rate could mend: only growth is a divergence."""
    far = {"loss": np.full(3, 5e3), "gap": np.ones(3), "spread": np.full(3, 0.4), "drift": np.full(3, 0.5)}
    assert training.unhealthy(far) is None and training.unhealthy(far, {"loss": -2e3}) is None
    problem = training.unhealthy(far, {"loss": 1.6e3})
    assert problem is not None and "5e+03 temperatures apart" in problem
    recipe = EnergyRecipe(steps=8, batch_size=16, bank_size=32, langevin_steps=5, temperature=1e-7, step_size=1e-4)
    _, history = train_energy(SmallEnergy(), digits, key(), recipe=recipe, interval=4)
    assert np.abs(history["loss"][0]) > 1000


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, {0: 1e-4, 1332: 1e-4, 1333: 1e-5, 2500: 1e-6, 3333: 1e-7}),
        ({"schedule": "cosine"}, {0: 0.0, 250: 5e-5, 500: 1e-4, 2250: 5e-5, 4000: 0.0}),
    ],
)
def test_learning_rates(options, rates):
    optimizer = energy_optimizer(EnergyRecipe(steps=4000, **options))
    state = optimizer.init(jnp.zeros(()))
    for step, rate in rates.items():
        placed = jax.tree.map(lambda leaf, step=step: jnp.int32(step) if leaf.dtype == jnp.int32 else leaf, state)
        # Adam's first moments of a constant gradient give it a length of 1: what is left is the rate. Its own count
        # corrects a bias that the schedule's count does not see.
        adam = placed[0]._replace(count=jnp.int32(0))
        change, _ = optimizer.update(jnp.ones(()), (adam, *placed[1:]))
        np.testing.assert_allclose(-change, rate, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank_size": 10}, "bank_size=10 is smaller than batch_size=128"),
        ({"bank_start": "gan"}, "bank_start='gan'; known: data, noise"),
        ({"rejuvenation": 1.5}, "rejuvenation=1.5; it must be in"),
        ({"schedule": "linear"}, "schedule='linear'; known: drops, cosine"),
        ({"steps": -1}, "steps=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data_noise": -1.0}, "data_noise=-1.0; it must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan; it must be a number above 0"),
        ({"temperature": 0.0}, "temperature=0.0; it must be a number above 0"),
        ({"drops": (0.5, 2.0)}, r"drops=\(0.5, 2.0\); they are shares"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        EnergyRecipe(**options)
