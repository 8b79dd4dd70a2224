"""Attacks as a grid calls them: what they see of a surrogate, target images, purifiers they go through, victims."""

import jax
import numpy as np
import pytest

from jaxpurify.data.poison import load_poison
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.crafting import adaptive_purifier, attack_of, choose_targets
from jaxpurify.evaluate.scenario import Scenario, run_scenario
from jaxpurify.networks.catalogue import NETWORKS
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
    row = read_rows(run_scenario(Scenario(tiny, attacks[1:], (), (1,)), tmp_path))[-1]
    assert row["adaptive"] is True and row["poisons"] == 20


def test_crafting_through_shifts(tiny, tmp_path):
    plain = "gradient_matching(epsilon=0.3, count=20, steps=3, restarts=1)"
    shifted = plain.removesuffix(")") + ", augment=1)"
    run_scenario(Scenario(tiny, (plain, shifted), (), (1,)), tmp_path)
    poisons = {load_poison(path).how["augmented"]: load_poison(path) for path in (tmp_path / "poisons").iterdir()}
    assert set(poisons) == {False, True}
    assert (poisons[True].images != poisons[False].images).any()


def test_a_hidden_trigger_is_counted_on_its_source_class(tiny, tmp_path):
    attack = "sleeper_agent(epsilon=0.3, count=20, steps=2, size=3, source=5, retrain_every=1)"
    row = read_rows(run_scenario(Scenario(tiny, (attack,), (), (1,), training="fine-tune"), tmp_path))[-1]
    of_source = int((tiny.load()[1].labels == 5).sum())
    assert row["victim"] == "flat-w4-fine-tune"
    assert row["poison_success"] * of_source == pytest.approx(round(row["poison_success"] * of_source))
    assert row["poison_success"] == row["poison_success_worst"]


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("narcissus(3)", r"options are written name=value"),
        ("narcissus(speed=3)", r"takes no option 'speed'; known: target, count"),
        ("narcissus(transform='jpeg')", r"takes no option 'transform'"),
        ("gradient_matching(augment='crop')", r"^augment='crop'; it must be a number of pixels, 0 or more"),
        ("badnets(augment=4)", r"takes no option 'augment'"),
        ("badnets(through='jpeg')", r"takes no option 'through'"),
        ("narcissus(gradient='exact')", r"gradient goes with through='…', the purifier"),
    ],
)
def test_bad_specs_are_one_clear_line(spec, message):
    with pytest.raises(ValueError, match=message):
        attack_of(spec)


def test_what_an_adaptive_attack_goes_through():
    _, settings, through = attack_of("narcissus(count=3, through='langevin(steps=2)', gradient='truncated')")
    assert settings == {"count": 3}
    purifier = adaptive_purifier(through, (8, 8, 1))
    assert purifier.mode == "truncated" and purifier.steps == 8 and purifier.purifier.steps == 2
    assert adaptive_purifier({}, (8, 8, 1)) is None
    with pytest.raises(ValueError, match=r"^unknown training 'x'|^training='x'; known: scratch, linear, fine-tune$"):
        Scenario(tiny_protocol(), (), (), (0,), training="x")
