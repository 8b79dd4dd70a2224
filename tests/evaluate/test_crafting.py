"""Attacks as a grid calls them: what they see of a surrogate, target images, purifiers they go through, victims."""

import dataclasses
import importlib
import inspect

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import loop
from jaxpurify.attack.gradient_matching import gradient_matching
from jaxpurify.attack.metapoison import metapoison
from jaxpurify.data.poison import load_poison
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.crafting import adaptive_purifier, attack_of, choose_targets, craft
from jaxpurify.evaluate.grid import _Grid, kept_poison, run_scenario
from jaxpurify.evaluate.protocol import Protocol, protocol
from jaxpurify.evaluate.purified import purify_key
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.evaluate.row import adaptive
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.networks import ResNet9
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.layers import BatchNorm, Conv, Linear
from jaxpurify.networks.partition import split_trainable
from jaxpurify.purify.dataset import purify
from jaxpurify.records import read_rows
from tests.evaluate.flat import Flat, tiny_protocol


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(NETWORKS, "flat", Flat)
    return tiny_protocol()


def test_a_targeted_attack_on_a_transfer_victim(tiny, tmp_path):
    attack = "bullseye(epsilon=0.5, count=25, steps=100, learning_rate=0.02)"
    scenario = Scenario(tiny, (attack,), ("none",), (0, 1, 2, 3), training="linear")
    rows = [row for row in read_rows(run_scenario(scenario, tmp_path)) if row["attack"] != "none"]
    assert {row["victim"] for row in rows} == {"flat-w4-linear"}
    assert [row["target"] for row in rows] == [0, 1, 2, 3] and all(row["adaptive"] is False for row in rows)
    assert sum(row["poison_success"] for row in rows) >= 1 + sum(row["trigger_success_clean"] for row in rows)
    poison = load_poison(next((tmp_path / "poisons").iterdir()))
    assert len(poison.targets) == 1 and poison.targets.labels[0] != poison.target


@pytest.mark.parametrize(
    ("options", "count", "shared"),
    [
        ("restarts=1", 20, 4),
        ("restarts=3", 18, 3),
        ("restarts=4", 20, None),
        ("restarts=1", 7, None),
        ("restarts=1, match='minibatch', micro_batch=10", 20, None),
        ("restarts=1, through='filt(\"jpeg\")', gradient='straight_through'", 20, None),
    ],
)
def test_devices_share_poisons_where_they_cannot_share_restarts(tiny, options, count, shared):
    entry, settings, through = attack_of(f"gradient_matching(epsilon=0.3, count={count}, steps=1, {options})")
    if through:
        settings["transform"] = adaptive_purifier(through, (8, 8, 1))
    given = {}

    def seen(*arguments, mesh=None, **options):
        given["mesh"] = mesh
        return gradient_matching(*arguments, mesh=mesh, **options)

    seen.__signature__ = inspect.signature(gradient_matching)
    train, test = tiny.load()
    settings |= {"target": 1, "targets": choose_targets(test, jax.random.key(0), 1, 1)}
    surrogate = tiny.classifier(train, 0, stop_after=1)
    poison = craft(dataclasses.replace(entry, craft=seen), settings, surrogate, train, jax.random.key(1))
    assert len(poison) == count and (given["mesh"] and given["mesh"].size) == shared


def test_parameters_ensembles_and_adaptive_crafting(tiny, tmp_path):
    attacks = (
        "gradient_matching(epsilon=0.3, count=20, steps=3, restarts=1)",
        "narcissus(epsilon=0.3, count=20, steps=2, batch_size=20, through='jpeg(quality=50)', "
        "gradient='straight_through')",
    )
    scenario = Scenario(tiny, attacks[:1], (), (1,), targets=2, surrogates=2)
    row = read_rows(run_scenario(scenario, tmp_path))[-1]
    assert row["poison_success"] in (0, 0.5, 1) and row["config"]["targets"] == row["config"]["surrogates"] == 2
    assert len(list((tmp_path / "models").glob("surrogate*.safetensors"))) == 2
    defences = ("jpeg(quality=50)", "jpeg(quality=90)|identity")
    known = read_rows(run_scenario(Scenario(tiny, attacks[1:], defences, (1,)), tmp_path))[-3:]
    assert [row["adaptive"] for row in known] == [False, True, False]
    assert all(row["poisons"] == 20 for row in known)


def test_what_an_attacker_knows_of_a_purifier():
    shape, through = (8, 8, 1), "narcissus(count=3, through='langevin(steps=3)')"
    scenario = Scenario(protocol("demo"), (through,), (), (0,))
    energy = ("langevin(steps=150)", "digits-ebm", "langevin(steps=2)|jpeg()", "repeat('langevin(steps=1)', 2)")
    assert all(adaptive(through, defence, scenario, shape) for defence in energy)
    assert not any(adaptive(through, defence, scenario, shape) for defence in ("none", "digits-ddpm", "jpeg()"))
    assert adaptive("narcissus(count=3, through='jpeg')", "jpeg(quality=50)|langevin(steps=2)", scenario, shape)
    assert not adaptive("narcissus(count=3, through='jpeg(quality=9)')", "jpeg", scenario, shape)
    assert not adaptive("narcissus(count=3)", "digits-ebm", scenario, shape)
    behind = dataclasses.replace(scenario, surrogate_defence="digits-both")
    assert adaptive("narcissus(count=3)", "digits-ddpm", behind, shape)
    assert not adaptive("badnets(count=3)", "digits-ddpm", behind, shape)  # has no surrogate


def test_crafting_through_shifts(tiny, tmp_path):
    plain = "gradient_matching(epsilon=0.3, count=20, steps=3, restarts=1)"
    shifted = plain.removesuffix(")") + ", augment=1)"
    run_scenario(Scenario(tiny, (plain, shifted), (), (1,)), tmp_path)
    poisons = {load_poison(path).how["augmented"]: load_poison(path) for path in (tmp_path / "poisons").iterdir()}
    assert set(poisons) == {False, True}
    assert (poisons[True].images != poisons[False].images).any()


def test_targets_are_of_one_other_class_and_follow_the_key():
    test = load_source("digits[:300]")
    for seed in range(5):
        targets = choose_targets(test, jax.random.key(seed), 7, 3)
        assert len(set(targets.labels)) == 1 and targets.labels[0] != 7
        np.testing.assert_array_equal(test.images[targets.index], targets.images)
    again = choose_targets(test, jax.random.key(4), 7, 3)
    np.testing.assert_array_equal(again.index, targets.index)
    with pytest.raises(ValueError, match=r"^1000 target images are asked for; class \d has \d+ test images$"):
        choose_targets(test, jax.random.key(0), 7, 1000)


def test_targets_are_never_of_the_base_class():
    digits = load_source("digits[:100]")
    three = dataclasses.replace(digits.select(digits.labels < 3), classes=("0", "1", "2"))
    for base in (1, 2):
        drawn = [choose_targets(three, jax.random.key(seed), 0, 1, base).labels[0] for seed in range(6)]
        assert drawn == [3 - base] * 6


def test_a_patch_that_is_a_size_is_an_option():
    assert attack_of("linear_noise(patch=4)")[1] == {"patch": 4}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("narcissus(3)", r"options are written name=value"),
        ("narcissus(speed=3)", r"takes no option 'speed'; known: target, count"),
        ("narcissus(transform='jpeg')", r"takes no option 'transform'"),
        ("gradient_matching(augment=True)", r"^augment=True; it must be a number of pixels, 0 or more"),
        ("gradient_matching(augment='crop')", r"^augment='crop'; it must be a number of pixels, 0 or more"),
        ("badnets(augment=4)", r"takes no option 'augment'"),
        ("badnets(through='jpeg')", r"takes no option 'through'"),
        ("narcissus(gradient='exact')", r"gradient goes with through='…', the purifier"),
        ("gradient_matching(hidden_weight=100)", r"^hidden_weight=100 goes with hidden=True$"),
        ("gradient_matching(hidden_weight=100, hidden=False)", r"^hidden_weight=100 goes with hidden=True$"),
        ("gradient_matching(hidden='features')", r"^hidden='features'; it must be True, the surrogate's features, "),
        ("gradient_matching(micro_batch=2.5)", r"^micro_batch is 2\.5; it must be a whole number$"),
        ("metapoison(unroll='2')", r"^unroll is '2'; it must be a whole number$"),
        ("metapoison(refresh_every=2)", r"takes no option 'refresh_every'; known: target, "),
        ("wanet(grid=2.5)", r"^grid is 2\.5; it must be a whole number$"),
        ("bullseye(draws=3)", r"^attack 'bullseye' takes no option 'draws'; known: target, "),
        ("narcissus(epsilon=None)", r"^epsilon is None; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ("narcissus(epsilon='large')", r"^epsilon is 'large'; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ("bullseye(epsilon=0)", r"^epsilon is 0; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ("narcissus(through=5)", r"^through=5; it must be a purifier in quotes, as 'langevin\(steps=150\)'$"),
        (
            "narcissus(through='jpeg', gradient_steps=3)",
            r"^gradient_steps=3 goes with gradient='truncated', not 'exact'$",
        ),
        (
            "narcissus(through='jpeg', gradient='straight_through', gradient_difference=0.01)",
            r"^gradient_difference=0\.01: a straight_through gradient has no derivatives$",
        ),
        ("bullseye(end_to_end=2)", r"^end_to_end=2; it must be True, the outputs of all blocks, or False$"),
        ("narcissus(end_to_end=True)", r"takes no option 'end_to_end'"),
        ("gradient_matching(decay='no')", r"^decay='no'; it must be True or False$"),
        ("gradient_matching(base=2.5)", r"^base is 2\.5; it must be a whole number$"),
        ("sleeper_agent(patch=3)", r"^attack 'sleeper_agent' takes no option 'patch'"),
        ("gradient_matching(loss='cosine')", r"^loss is 'cosine'; known: similarity, "),
        ("metapoison(criterion='hinge')", r"^criterion is 'hinge'; known: xent, "),
        ("narcissus(steps=0)", r"^steps is 0; it must be at least 1$"),
        ("bullseye(restarts=-1)", r"^restarts is -1; it must be at least 1$"),
        ("badnets(epsilon=8)", r"^epsilon is 8; it must be from 1/255 to 1, in units of \[0, 1\]$"),
    ],
)
def test_bad_specs_are_one_clear_line(spec, message):
    with pytest.raises(ValueError, match=message):
        attack_of(spec)


@pytest.mark.parametrize(
    "spec",
    ["linear_noise(epsilon=1.3)", "watermark(epsilon=None)", "wanet(epsilon=None, grid=3)", "badnets(count=None)"],
)
def test_budgets_of_other_units_and_none_at_all_are_left_alone(spec):
    assert attack_of(spec)[1]


class Normalised(nnx.Module):
    """A network with running statistics, other ones for every seed."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.first = Conv(1, 4, 3, padding=1, rngs=rngs)
        self.norm = BatchNorm(4)
        self.linear = Linear(4, 10, rngs=rngs)
        self.norm.mean[...] = 0.3 * jax.random.normal(jax.random.key(seed), (4,))
        self.norm.variance[...] = 1.0 + seed

    def features(self, images):
        return jnp.tanh(self.norm(self.first(images))).mean((1, 2))

    def __call__(self, images):
        return self.linear(self.features(images))


def watched(monkeypatch, name):
    """Every objective that a module of attacks advances, and how many programs were compiled before it."""
    module = importlib.import_module(f"jaxpurify.attack.{name}")
    seen, genuine = [], module.advance

    def advance(objective, *rest):
        seen.append((objective, loop._compiled_step._cache_size()))
        return genuine(objective, *rest)

    monkeypatch.setattr(module, "advance", advance)
    return seen


def test_features_of_every_block_are_followed_on_request(tiny):
    digits = load_source("digits[:200]")
    network, other = (freeze(ResNet9(4, channels=1, rngs=nnx.Rngs(seed))) for seed in range(2))
    poisons = []
    for option in ("", ", end_to_end=True"):
        entry, settings, _ = attack_of(f"bullseye(target=3, count=5, steps=2{option})")
        targets = choose_targets(digits, jax.random.key(0), 3, 1)
        poisons.append(craft(entry, settings | {"targets": targets}, (network, other), digits, jax.random.key(0)))
    assert [poison.how["blocks"] for poison in poisons] == [[1, 1], [4, 4]]
    assert (poisons[0].images != poisons[1].images).any()
    with pytest.raises(ValueError, match=r"^Flat has no block outputs; known: ResNet9, ResNet \(18 and 34\)$"):
        craft(entry, settings | {"targets": targets}, freeze(Flat(rngs=nnx.Rngs(0))), digits, jax.random.key(0))


def test_linear_victims_keep_the_surrogate(tiny):
    with pytest.raises(ValueError, match=r"linear victims keep the surrogate; no retrain_every$"):
        Scenario(tiny, ("sleeper_agent(count=5, retrain_every=1)",), (), (0,), training="linear")


def test_gradients_are_of_the_layer_that_linear_victims_train(tiny, tmp_path, monkeypatch):
    seen = watched(monkeypatch, "side_by_side")
    attack = "gradient_matching(epsilon=0.3, count=20, steps=2, restarts=1)"
    kept_poison(tmp_path, Scenario(tiny, (attack,), (), (1,), training="linear"), attack, 1)
    ((objective, _),) = seen
    assert set(objective.members[0]) == {"linear"}


def test_surrogates_are_retrained_behind_the_defence(tiny, tmp_path, monkeypatch):
    seen, model = [], freeze(Flat(rngs=nnx.Rngs(0)))
    monkeypatch.setattr(Protocol, "classifier", lambda self, dataset, *rest, **options: seen.append(dataset) or model)
    train, spec = tiny.load()[0], "jpeg(quality=5)"
    for behind in ("", spec):
        grid = _Grid(Scenario(tiny, (), (), (1,), surrogate_defence=behind), tmp_path, lambda *_: None)
        assert grid.retrain(train.images, train.labels[::-1], jax.random.key(0)) is model
    np.testing.assert_array_equal(seen[0].images, train.images)
    purified = purify(make_purifier(spec, train.images.shape[1:]), train.images, key=purify_key())
    np.testing.assert_array_equal(seen[1].images, purified)
    np.testing.assert_array_equal(seen[1].labels, train.labels[::-1])


@pytest.mark.parametrize("members", [1, 2])
def test_retrained_surrogates_have_their_own_statistics(members, monkeypatch):
    digits = load_source("digits[:200]")
    images = jnp.asarray(digits.images[:20], jnp.float32) / 255
    made, drawn = [], []

    def retrain(poisoned, labels, key):
        made.append(freeze(Normalised(len(made) + 5)))
        drawn.append(float(jax.random.uniform(key)))
        return made[-1]

    surrogates = tuple(freeze(Normalised(seed)) for seed in range(members))
    entry, settings, _ = attack_of("sleeper_agent(target=3, source=8, size=3, count=5, steps=4, retrain_every=1)")
    seen = watched(monkeypatch, "sleeper_agent")
    surrogate = surrogates if members > 1 else surrogates[0]
    poison = craft(entry, settings, surrogate, digits, jax.random.key(0), retrain=retrain)
    assert poison.how["retrainings"] == 3 and poison.how["members"] == members
    assert len(made) == len(set(drawn)) == 3 * members
    for (objective, _), number in zip(seen, range(-members, 3 * members, members), strict=True):
        trained = surrogates if number < 0 else made[number : number + members]
        for apply, params, network in zip(objective.applies, objective.members, trained, strict=True):
            np.testing.assert_allclose(apply(params, images), network(images), rtol=1e-5, atol=1e-6)
    assert seen[1][1] == seen[2][1] == seen[3][1]  # one program for all


def test_refreshed_members_have_their_own_statistics(monkeypatch):
    digits = load_source("digits[:200]")
    images = jnp.asarray(digits.images[:20], jnp.float32) / 255
    targets = choose_targets(digits, jax.random.key(0), 3, 1)
    networks = [freeze(Normalised(seed)) for seed in range(3)]

    def refresh(applies, members, step, key):
        np.testing.assert_allclose(applies[0](members[0], images), networks[step - 1](images), rtol=1e-5, atol=1e-6)
        return split_trainable(networks[step])

    seen = watched(monkeypatch, "side_by_side")
    options = {"target": 3, "targets": targets, "count": 5, "steps": 3, "refresh": refresh}
    metapoison(*split_trainable(networks[0]), jax.random.key(0), digits.images, digits.labels, **options)
    for (objective, _), network in zip(seen, networks, strict=True):
        found = objective.applies[0](objective.members[0], images)
        np.testing.assert_allclose(found, network(images), rtol=1e-5, atol=1e-6)
    assert seen[1][1] == seen[2][1]


def test_poisons_hide_in_the_surrogates_features():
    digits = load_source("digits[:200]")
    targets = choose_targets(digits, jax.random.key(0), 3, 1)
    surrogates = tuple(freeze(Normalised(seed)) for seed in range(2))

    def moved(spec):
        entry, settings, _ = attack_of(spec)
        poison = craft(entry, settings | {"targets": targets}, surrogates, digits, jax.random.key(0))
        assert poison.how["hidden_weight"] == (1e4 if "hidden" in spec else 0)
        both = (jnp.asarray(each, jnp.float32) / 255 for each in (poison.images, digits.images[poison.index]))
        one, other = (surrogates[1].features(images) for images in both)
        return float(jnp.square(one - other).mean())

    plain = "gradient_matching(target=3, count=5, steps=15, restarts=1, epsilon=0.3, learning_rate=0.05"
    assert moved(f"{plain}, hidden=True, hidden_weight=1e4)") < 0.5 * moved(f"{plain})")


def test_one_surrogate_is_retrained_for_each_member(tiny, tmp_path):
    attack = "sleeper_agent(epsilon=0.3, count=20, steps=2, size=3, source=5, retrain_every=1)"
    run_scenario(Scenario(tiny, (attack,), (), (1,), surrogates=2), tmp_path)
    how = load_poison(next((tmp_path / "poisons").iterdir())).how
    assert how["members"] == 2 and how["retrainings"] == 1


def test_an_ensemble_for_narcissus(tiny, tmp_path):
    attack = "narcissus(epsilon=0.3, count=20, steps=2, batch_size=20)"
    run_scenario(Scenario(tiny, (attack,), (), (1,), surrogates=2), tmp_path)
    assert load_poison(next((tmp_path / "poisons").iterdir())).how["members"] == 2


def test_what_an_adaptive_attack_goes_through():
    _, settings, through = attack_of("narcissus(count=3, through='langevin(steps=2)', gradient='truncated')")
    assert settings == {"count": 3}
    purifier = adaptive_purifier(through, (8, 8, 1))
    assert purifier.mode == "truncated" and purifier.steps == 8 and purifier.purifier.steps == 2
    assert adaptive_purifier({}, (8, 8, 1)) is None
    with pytest.raises(ValueError, match=r"^unknown training 'x'|^training='x'; known: scratch, linear, fine-tune$"):
        Scenario(tiny_protocol(), (), (), (0,), training="x")
