"""The grids of the experiments: every name in them is known, and parts of a grid are parts of the same seeds."""

import pytest

from experiments import attacks_cpu, equal_strength, puregen_table1, puregen_table11, transfer_matrix
from jaxpurify.evaluate.purifiers import make_purifier


def grids():
    """(name, scenarios of (part, parts)) of every experiment with victims."""
    for protocol in ("cpu", "cpu-small", "paper"):
        yield f"table1-{protocol}", puregen_table1.Config(protocol=protocol).scenarios
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


def test_a_single_seed_stays_a_single_seed():
    parts = [puregen_table11.Config(seeds=(0,)).scenarios(part, 2) for part in (0, 1)]
    assert [{scenario.seeds for scenario in part} for part in parts] == [{(0,)}, {()}]


def test_the_paper_protocol_has_the_published_settings():
    (paper,) = puregen_table1.Config(protocol="paper", ebm_weights="e.safetensors").scenarios()
    assert "diffusion(timestep=75)" in paper.defences and paper.trigger_scale == 1.0
    assert "langevin(steps=150, weights='e.safetensors')" in paper.defences
    assert "steps=14286" in paper.attacks[0] and "choice='last'" in paper.attacks[0]
