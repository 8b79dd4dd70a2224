"""The grids of the experiments: every name in them is known, and parts of a grid are parts of the same seeds."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    attacks_cpu,
    equal_strength,
    grid,
    puregen_table1,
    puregen_table3,
    puregen_table11,
    transfer_matrix,
)
from jaxpurify.data.poison import AdditiveTrigger
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.weights.catalogue import bundled_path

WEIGHTS = [str(bundled_path(name)) for name in ("cifar10-ebm", "cifar10-ddpm")]


def grids():
    """(name, scenarios of (part, parts)) of every experiment with victims."""
    for protocol in ("cpu", "cpu-small"):
        yield f"table1-{protocol}", puregen_table1.Config(protocol=protocol).scenarios
    yield "table1-paper", puregen_table1.Config("paper", ebm_weights=WEIGHTS[0], ddpm_weights=WEIGHTS[1]).scenarios
    yield "table11", puregen_table11.Config().scenarios
    yield "transfer-matrix", transfer_matrix.Config(networks=("", "resnet9(width=8)")).scenarios
    for group in attacks_cpu.GROUPS:
        yield group, attacks_cpu.Config(group=group).scenarios
    for family in ("langevin", "diffusion"):
        yield family, equal_strength.Config(family=family).scenarios


@pytest.mark.parametrize(("name", "scenarios"), list(grids()))
def test_attacks_and_defences_are_known_and_parts_make_the_whole(name, scenarios):
    # Making a scenario checks its attacks and networks.
    whole, first, second = scenarios(0, 1), scenarios(0, 2), scenarios(1, 2)
    for one, left, right in zip(whole, first, second, strict=True):
        assert sorted(left.seeds + right.seeds) == sorted(one.seeds) and len(one.seeds) >= 3
        assert left.attacks == right.attacks == one.attacks
        for defence in one.defences:
            if defence != "none":
                make_purifier(defence, (32, 32, 3))


def test_variants_of_an_attacker_differ_in_knowledge_alone():
    baseline, generation, surrogate, both = puregen_table11.Config().scenarios(0, 1)
    assert (
        generation.attacks[0].startswith(baseline.attacks[0].removesuffix(")")) and "steps=200" in baseline.attacks[0]
    )
    assert surrogate.attacks == baseline.attacks and both.attacks == generation.attacks
    assert surrogate.surrogate_defence == both.surrogate_defence == "langevin(steps=50)" != baseline.surrogate_defence
    assert "choice='last'" in both.attacks[0]


def test_columns_have_their_own_seeds():
    few, many = puregen_table1.Config(protocol="cpu-small", defences=("jpeg-25", "ebm", "jpeg-75")).scenarios()
    assert (len(few.seeds), len(few.defences), len(many.seeds), many.defences) == (10, 2, 30, ("langevin(steps=150)",))
    (mixed,) = puregen_table1.Config(protocol="cpu-small", defences=("jpeg-25", "ebm"), seeds=(3,)).scenarios()
    assert len(mixed.defences) == 2 and mixed.seeds == (3,)
    with pytest.raises(ValueError, match="protocol cpu uses the bundled models; leave weights out, or use paper"):
        puregen_table1.Config(ebm_weights="e.safetensors").scenarios()
    with pytest.raises(ValueError, match=r"^protocol paper needs ebm_weights and ddpm_weights: the bundled"):
        puregen_table1.Config("paper", ebm_weights="e.safetensors").scenarios()
    with pytest.raises(ValueError, match=r"^unknown defences ebn; known: none, jpeg-25, .*filt-compat$"):
        puregen_table1.Config(defences=("none", "ebn")).scenarios()


def test_a_config_of_what_there_is_not_is_one_line(monkeypatch):
    monkeypatch.setattr(grid, "keep_memory", lambda: True)  # of the whole process
    config = puregen_table1.Config(defences=("ebn",), part=0)
    with pytest.raises(SystemExit, match=r"^experiments\.puregen_table1: unknown defences ebn; known: none"):
        grid.run_grid("experiments.puregen_table1", config, "none")


def test_on_accelerators_one_process_takes_all_devices(monkeypatch):
    started = []
    monkeypatch.setattr(puregen_table1, "run_grid", lambda module, config, name: started.append(config.workers))
    for protocol in ("cpu", "paper"):
        config = puregen_table1.Config(protocol=protocol)
        monkeypatch.setattr(puregen_table1.tyro, "cli", lambda kind, config=config: config)
        puregen_table1.main()
    assert started == [2, 1]


def test_public_images_carry_the_triggers_of_their_classes(monkeypatch, cifar10):
    """Of Table 3: nothing else changes, and nothing at all in the control."""
    (scenario,) = puregen_table1.Config(protocol="cpu-small", defences=("none",)).scenarios()
    small = dataclasses.replace(
        scenario, protocol=dataclasses.replace(scenario.protocol, public=f"{cifar10}/train[:60]")
    )
    monkeypatch.setattr(puregen_table3, "table1", lambda epsilon: small)
    trigger = np.random.default_rng(0).choice([-8, 8], (10, 32, 32, 3)) / np.float32(255)

    def kept(directory, scenario, attack, label):
        return SimpleNamespace(trigger=AdditiveTrigger(jnp.asarray(trigger[label], jnp.float32)))

    monkeypatch.setattr(puregen_table3, "kept_poison", kept)
    monkeypatch.setattr(puregen_table3, "locked", lambda path: contextlib.nullcontext())
    clean = load_source(small.protocol.public)
    np.testing.assert_array_equal(puregen_table3.public_images(0), clean.images)
    change = puregen_table3.public_images(8).astype(int) - clean.images
    expected = np.clip(clean.images + np.rint(255 * trigger[clean.labels]).astype(int), 0, 255) - clean.images
    np.testing.assert_array_equal(change, expected)


def test_triggers_of_an_odd_number_of_seeds_are_shared_evenly():
    parts = [puregen_table11.Config().scenarios(part, 2) for part in (0, 1)]
    through = [sum(len(scenario.seeds) for scenario in part if "through" in scenario.attacks[0]) for part in parts]
    assert through == [3, 3] and sum(len(scenario.seeds) for scenario in parts[0]) == 6


def test_a_single_seed_stays_a_single_seed():
    parts = [puregen_table11.Config(seeds=(0,)).scenarios(part, 2) for part in (0, 1)]
    assert [[scenario.seeds for scenario in part] for part in parts] == [[(0,), (0,), (), ()], [(), (), (0,), (0,)]]


def test_the_paper_protocol_has_the_published_settings():
    weights = {"ebm_weights": "e.safetensors", "ddpm_weights": "d.safetensors"}
    (paper,) = puregen_table1.Config(protocol="paper", **weights).scenarios()
    assert "diffusion(timestep=75, weights='d.safetensors')" in paper.defences and paper.trigger_scale == 1.0
    assert "langevin(steps=150, weights='e.safetensors')" in paper.defences
    assert "steps=14286" in paper.attacks[0] and "choice='last'" in paper.attacks[0]
