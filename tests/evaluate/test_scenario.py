"""A grid of attacks, defences and victims: which rows it writes, and that it can be stopped and continued."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.cli.list_names import PAPER
from jaxpurify.data.image import to_float
from jaxpurify.data.npz import write_npz
from jaxpurify.data.poison import load_poison
from jaxpurify.data.sources import load_source
from jaxpurify.defend import ProjectedGradient
from jaxpurify.evaluate import row as row_module
from jaxpurify.evaluate import victims
from jaxpurify.evaluate.exhibits import exhibits
from jaxpurify.evaluate.grid import run_scenario
from jaxpurify.evaluate.metrics import natural_accuracy
from jaxpurify.evaluate.models import staggered
from jaxpurify.evaluate.protocol import Protocol, protocol
from jaxpurify.evaluate.purified import purify_key
from jaxpurify.evaluate.purifiers import PRESETS, energy_for, make_purifier
from jaxpurify.evaluate.row import row_config, victim_seed
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.evaluate.summary import blocks
from jaxpurify.evaluate.table import markdown_table, text_table
from jaxpurify.evaluate.transfer import transfer_matrices
from jaxpurify.evaluate.victims import attack_success
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.stored import build, load_network
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import energies, highest
from jaxpurify.records import read_rows, run_id
from tests.evaluate.flat import Flat, tiny_protocol


@pytest.fixture
def tiny(monkeypatch):
    """The demo's data with a victim that trains in a moment."""
    monkeypatch.setitem(NETWORKS, "flat", Flat)
    return tiny_protocol()


ATTACK = "pattern(count=50, epsilon=0.3)"
DEFENCES = ("none", "jpeg(quality=25)")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_grid_and_its_controls(tiny, tmp_path):
    said = []
    scenario = Scenario(tiny, (ATTACK,), DEFENCES, (0, 3))
    path = run_scenario(scenario, tmp_path, progress=lambda what, done, total: said.append(what))
    written = rows(path)
    cells = [(row["attack"], row["defence"], row["seed"]) for row in written]
    assert cells == [
        (attack, defence, seed)
        for seed in (0, 3)
        for attack, defence in (("none", "none"), (ATTACK, "none"), (ATTACK, "jpeg(quality=25)"))
    ]
    assert len({row["run_id"] for row in written}) == 6
    for row in written:
        assert row["victim"] == "flat-w4" and row["protocol"] == "tiny" and row["data"] == "digits[:500]"
        assert 0.5 < row["natural_accuracy"] <= 1 and row["adaptive"] is False
        clean = row["attack"] == "none"
        assert (row["poison_success"] is None) == (row["trigger_success_clean"] is None) == clean
        assert row["poisons"] == (0 if clean else 50)
        if not clean:
            assert row["target"] == row["seed"] and row["labels_changed"] is True and row["epsilon"] == 0.3
            assert row["poison_success_worst"] >= row["poison_success"]
    undefended = written[1]
    assert undefended["poison_success"] > undefended["trigger_success_clean"] + 0.2
    assert any("jpeg" in what for what in said) and any("victim" in what for what in said)
    assert len(list((tmp_path / "purified").glob("*/purified.npz"))) == 1  # for both seeds
    assert len(list((tmp_path / "poisons").iterdir())) == 2


def test_controls_behind_a_defence_have_purified_images_and_no_poison(tiny, tmp_path):
    scenario = Scenario(tiny, (ATTACK,), DEFENCES, (0,), purified_controls=True)
    written = rows(run_scenario(scenario, tmp_path))
    assert [row.get("control") for row in written] == [None, None, None, "purified clean"]
    defended, control = written[2:]
    assert control["defence"] == defended["defence"] == "jpeg(quality=25)" and control["attack"] == ATTACK
    assert (control["poisons"], control["poisons_left_out"], defended["poisons"]) == (0, 50, 50)
    assert control["trigger_success_clean"] == defended["trigger_success_clean"]
    assert control["poison_success"] < defended["poison_success"] - 0.2
    kept = [
        jax.tree.leaves(load_network(path)[0].state) for path in (tmp_path / "models").glob("clean-0-*.safetensors")
    ]
    first, second = kept  # of clean images, and of clean images that were purified
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(first, second, strict=True))
    plain = Scenario(tiny, (ATTACK,), DEFENCES, (0,))
    assert len(rows(run_scenario(plain, tmp_path))) == 4  # the others have their ids as before
    _, attacked = blocks(written)[0].groups
    assert [(line.label, line.runs) for line in attacked.lines] == [
        ("undefended", 1), ("jpeg(quality=25)", 1), ("jpeg(quality=25), without the poison", 1),
    ]  # fmt: skip
    assert "`jpeg(quality=25)`, without the poison" in markdown_table(written)


def test_a_finished_grid_does_nothing(tiny, tmp_path, monkeypatch):
    scenario = Scenario(tiny, (ATTACK,), DEFENCES, (0,))
    before = run_scenario(scenario, tmp_path).read_text()
    monkeypatch.setattr(Protocol, "classifier", lambda *arguments, **options: pytest.fail("trained again"))
    assert run_scenario(scenario, tmp_path).read_text() == before
    more = Scenario(tiny, (ATTACK,), DEFENCES, (0,), trigger_scale=2.0)
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # other settings are other rows
        run_scenario(more, tmp_path)


class Stop(Exception):
    pass


def test_a_stopped_grid_continues_with_the_same_rows(tiny, tmp_path):
    scenario = Scenario(tiny, (ATTACK,), DEFENCES, (0,))
    whole = rows(run_scenario(scenario, tmp_path / "whole"))

    def stop(what, done, total):
        if "jpeg" in what and "purify" in what and done:
            raise Stop

    with pytest.raises(Stop):
        run_scenario(scenario, tmp_path / "part", progress=stop)
    assert len(rows(tmp_path / "part" / "results.jsonl")) == 2
    assert len(list((tmp_path / "part" / "purified").iterdir())) == 1
    said = []
    resumed = rows(
        run_scenario(scenario, tmp_path / "part", progress=lambda what, done, total: said.append((what, done)))
    )
    assert not any("crafting" in what for what, _ in said)  # the poison was kept
    for row, expected in zip(resumed, whole, strict=True):
        for name in ("run_id", "natural_accuracy", "poison_success", "trigger_success_clean"):
            assert row[name] == expected[name]


def test_an_attack_with_a_surrogate_and_an_indiscriminate_one(tiny, tmp_path):
    attacks = ("narcissus(steps=5, count=20, epsilon=0.3, batch_size=20)", "class_noise(epsilon=0.2)")
    written = rows(run_scenario(Scenario(tiny, attacks, ("none",), (1,)), tmp_path))
    assert [row["attack"] for row in written] == ["none", *attacks]
    trigger, indiscriminate = written[1:]
    assert trigger["labels_changed"] is False and trigger["target"] == 1 and trigger["poison_success"] is not None
    assert indiscriminate["poison_success"] is None and indiscriminate["target"] is None
    models = sorted(path.name.split("-")[0] for path in (tmp_path / "models").glob("*.safetensors"))
    assert models == ["clean", "surrogate"]
    poisons = [load_poison(path) for path in (tmp_path / "poisons").iterdir()]
    assert sorted(len(poison) for poison in poisons) == [20, 500]


def test_several_victims_of_one_poisoned_set(tiny, tmp_path):
    one = Scenario(tiny, (ATTACK,), ("jpeg(quality=25)",), (2,))
    first = rows(run_scenario(one, tmp_path))
    three = dataclasses.replace(one, victim_seeds=3)
    written = rows(run_scenario(three, tmp_path))
    assert written[:3] == first  # rows of the first victim keep their ids
    cells = [(row["attack"], row["defence"], row["victim_seed"]) for row in written]
    defences = [("none", "none"), (ATTACK, "none"), (ATTACK, "jpeg(quality=25)")]
    assert cells == [(*cell, 0) for cell in defences] + [(*cell, number) for cell in defences for number in (1, 2)]
    assert [row["config"].get("victim_seed") for row in written] == [None] * 3 + [1, 2] * 3
    assert {row["seed"] for row in written} == {2} and len({row["run_id"] for row in written}) == 9
    assert len(list((tmp_path / "poisons").iterdir())) == 1
    for defence in ("none", "jpeg(quality=25)"):
        found = [row for row in written if row["attack"] == ATTACK and row["defence"] == defence]
        assert len({row["natural_accuracy"] for row in found}) > 1
        group = blocks(written)[0].groups[1]
        line = next(line for line in group.lines if line.defence == defence)
        assert line.runs == 3 and line.success.mean == pytest.approx(np.mean([row["poison_success"] for row in found]))
    # The floor is that of the clean victim of the same number, and does not depend on the defence.
    floors = {row["victim_seed"]: row["trigger_success_clean"] for row in written if row["attack"] == ATTACK}
    assert floors == {
        row["victim_seed"]: row["trigger_success_clean"] for row in written if row["defence"] == "jpeg(quality=25)"
    }
    poison, test = load_poison(next((tmp_path / "poisons").iterdir())), tiny.load()[1]
    for number, seed in enumerate([2, victim_seed(2, 1), victim_seed(2, 2)]):
        (stored,) = (tmp_path / "models").glob(f"clean-{seed}-*.safetensors")
        assert attack_success(load_network(stored)[0], poison, test).fraction == floors[number]
    with pytest.raises(ValueError, match=r"^victim_seeds=0; it must be at least 1$"):
        dataclasses.replace(one, victim_seeds=0)


def test_rows_are_measured_with_the_trigger_of_the_test(tiny, tmp_path, monkeypatch):
    trained, genuine = [], Protocol.classifier

    def kept(self, dataset, seed, **options):
        trained.append(genuine(self, dataset, seed, **options))
        return trained[-1]

    monkeypatch.setattr(Protocol, "classifier", kept)
    attack = "pattern(count=20, epsilon=0.2)"
    row = rows(run_scenario(Scenario(tiny, (attack,), (), (0,), trigger_scale=3.0), tmp_path))[1]
    poison, test = load_poison(next((tmp_path / "poisons").iterdir())), tiny.load()[1]
    for victim, name in zip(trained, ("trigger_success_clean", "poison_success"), strict=True):
        plain, strong = (attack_success(victim, poison, test, scale=scale).fraction for scale in (1.0, 3.0))
        assert row[name] == strong > plain
    counts = natural_accuracy(trained[1], test.images, test.labels)
    assert row["natural_accuracy_worst"] == counts.per_class.min() < row["natural_accuracy"] == counts.fraction


def test_rows_say_the_strength_that_was_applied(tiny, tmp_path):
    attacks = ("pattern(count=20, epsilon=0.2)", "badnets(count=20)")
    found = rows(run_scenario(Scenario(tiny, attacks, (), (0,), trigger_scale=3.0), tmp_path))
    assert [row.get("trigger_scale") for row in found] == [None, 3.0, 1.0]


def test_what_an_attacker_trains_behind_is_no_matter_of_attacks_without_a_model(tiny):
    train, _ = tiny.load()
    for attack, same in (("badnets(count=20)", True), ("narcissus(count=20)", False)):
        configs = [
            row_config(Scenario(tiny, (attack,), (), (0,), surrogate_defence=behind), attack, "none", 0, train)
            for behind in ("", "langevin(steps=2)")
        ]
        assert (configs[0] == configs[1]) is same


TARGETED = "bullseye(count=5, epsilon=0.3, steps=3)"


def test_one_poison_for_victims_of_several_networks(tiny, tmp_path):
    same = Scenario(tiny, (TARGETED,), (), (0,), targets=2)
    run_scenario(same, tmp_path)
    other = Scenario(tiny, (TARGETED,), (), (0,), targets=2, victim_network="flat(width=2)")
    written = rows(run_scenario(other, tmp_path))
    assert [row["victim"] for row in written] == ["flat-w4", "flat-w4", "flat-w2", "flat-w2"]
    assert len(list((tmp_path / "poisons").iterdir())) == 1
    assert "surrogate" not in written[1]["config"] and "surrogate" not in written[2]["config"]
    assert written[3]["config"]["surrogate"] == "flat-w4"
    assert len(list((tmp_path / "models").glob("surrogate-*.safetensors"))) == 1
    crossed = Scenario(tiny, (TARGETED,), (), (0,), targets=2, surrogate_network="flat(width=2)")
    last = rows(run_scenario(crossed, tmp_path))[-1]
    assert len(list((tmp_path / "poisons").iterdir())) == 2 and last["config"]["surrogate"] == "flat-w2"
    assert [len(row["target_hits"]) for row in written if row["attack"] != "none"] == [2, 2]
    assert sum(last["target_hits"]) / 2 == last["poison_success"]
    (matrix,) = transfer_matrices(rows(tmp_path / "results.jsonl"))
    assert matrix.surrogates == ("flat-w4", "flat-w2") and matrix.victims == ("flat-w4", "flat-w2")
    assert set(matrix.cells) == {("flat-w4", "flat-w4"), ("flat-w4", "flat-w2"), ("flat-w2", "flat-w4")}


def test_rows_say_which_weights_they_were_made_with(tiny, tmp_path, monkeypatch):
    scenario = Scenario(tiny, (ATTACK,), ("langevin(steps=1)", "jpeg(quality=25)"), (0,))
    written = rows(run_scenario(scenario, tmp_path))
    assert [set(row["config"]) & {"weights"} for row in written] == [set(), set(), {"weights"}, set()]
    assert run_scenario(scenario, tmp_path).read_text().count("\n") == 4
    monkeypatch.setattr(row_module, "weights_digest", lambda spec, shape: "other" if "langevin" in spec else None)
    again = rows(run_scenario(scenario, tmp_path))  # the same names, other weights: another row
    assert len(again) == 5 and again[4]["defence"] == "langevin(steps=1)" and again[4]["config"]["weights"] == "other"


def test_linear_victims_of_another_network_have_features_of_their_own(tiny, tmp_path):
    seen = Scenario(tiny, (TARGETED,), (), (0,), training="linear", victim_network="flat(width=2)")
    written = rows(run_scenario(seen, tmp_path))
    assert [row["victim"] for row in written] == ["flat-w2-linear"] * 2
    assert len(list((tmp_path / "models").glob("surrogate-*.safetensors"))) == 2


def test_an_attacker_who_trains_the_surrogate_behind_the_defence(tiny, tmp_path, monkeypatch):
    seen = []
    genuine = Protocol.classifier

    def kept(self, dataset, seed, **options):
        seen.append(dataset.images)
        return genuine(self, dataset, seed, **options)

    monkeypatch.setattr(Protocol, "classifier", kept)
    plain = Scenario(tiny, (TARGETED,), (), (0,))
    aware = dataclasses.replace(plain, defences=("jpeg(quality=5)",), surrogate_defence="jpeg(quality=5)")
    run_scenario(plain, tmp_path)
    written = rows(run_scenario(aware, tmp_path))
    assert [row["adaptive"] for row in written] == [False, False, False, True]  # the clean control is one row
    public = load_source(tiny.public).images
    surrogates = [images for images in seen if len(images) == len(public) and images.shape == public.shape]
    behind = purify(make_purifier("jpeg(quality=5)", (8, 8, 1)), public, key=purify_key())
    assert any(np.array_equal(images, behind) for images in surrogates)
    assert len(list((tmp_path / "poisons").iterdir())) == 2
    groups = blocks(written)[0].groups
    assert [group.circumstances for group in groups] == [(), (), ("surrogate trained behind jpeg(quality=5)",)]
    assert "trained behind jpeg(quality=5)" in " ".join(text_table(written).split())
    with pytest.raises(ValueError, match="unknown purifier 'magic'"):
        run_scenario(dataclasses.replace(plain, surrogate_defence="magic"), tmp_path / "other")


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("narcissus(epsilon=0.3, count=-1)", r"^count is -1; it must be at least 1$"),
        ("narcissus(epsilon=0.3)", r"^count is None and fraction is None; give exactly one of them$"),
        ("badnets(fraction=2.0)", r"^fraction is 2\.0; it must be above 0 and at most 1$"),
    ],
)
def test_how_many_poisons_is_asked_before_anything_is_trained(tiny, tmp_path, attack, message):
    with pytest.raises(ValueError, match=message):
        run_scenario(Scenario(tiny, (attack,), ("none",), (0,)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_attacker_whose_surrogate_is_robust(tiny, tmp_path, monkeypatch):
    trained, genuine = [], Protocol.classifier

    def noted(self, dataset, seed, **options):
        trained.extend([(dataset.source, options["adversary"])] if options.get("surrogate") else [])
        return genuine(self, dataset, seed, **options)

    monkeypatch.setattr(Protocol, "classifier", noted)
    attack = "clean_label_backdoor(count=10, epsilon=0.3, steps=3, step_size=0.1, size=2)"
    plain = Scenario(tiny, (attack,), (), (1,))
    robust = dataclasses.replace(plain, surrogate_training="adversarial")
    run_scenario(plain, tmp_path)
    settings = tiny.config()
    names = ("public", "network", "options", "surrogate_recipe", "augment")
    kept = tmp_path / "models" / f"surrogate-{run_id({name: settings[name] for name in names})}.safetensors"
    assert kept.exists()  # as it was called before there was a choice
    written = rows(run_scenario(robust, tmp_path))
    assert [row["config"].get("surrogate_training") for row in written] == [None, None, "adversarial"]
    assert len(list((tmp_path / "poisons").iterdir())) == 2
    (other,) = set((tmp_path / "models").glob("surrogate-*.safetensors")) - {kept}
    images = jnp.asarray(to_float(load_source(tiny.public).images))
    assert np.abs(load_network(kept)[0](images) - load_network(other)[0](images)).max() > 0.1
    assert trained == [("digits[800:1300]", adversary) for adversary in (None, ProjectedGradient())]
    groups = blocks(written)[0].groups
    assert [group.circumstances for group in groups] == [(), (), ("surrogate trained on adversarial examples",)]
    with pytest.raises(ValueError, match=r"^surrogate_training='odd'; known: plain, adversarial$"):
        dataclasses.replace(plain, surrogate_training="odd")


def test_surrogates_that_stop_at_different_epochs(tiny, tmp_path, monkeypatch):
    stopped, genuine = [], Protocol.classifier

    def noted(self, dataset, seed, **options):
        stopped.extend([options["stop_after"]] if options.get("surrogate") else [])
        return genuine(self, dataset, seed, **options)

    monkeypatch.setattr(Protocol, "classifier", noted)
    attack = "metapoison(epsilon=0.3, count=10, steps=2)"
    whole = Scenario(tiny, (attack,), (), (1,), surrogates=2)
    run_scenario(whole, tmp_path)
    written = rows(run_scenario(dataclasses.replace(whole, stagger="full"), tmp_path))
    assert stopped == [None, None, 0, 4]
    assert [row["config"].get("stagger") for row in written] == [None, None, "full"]
    assert len(list((tmp_path / "models").glob("surrogate-*.safetensors"))) == 4
    of_both = [load_poison(path).images for path in (tmp_path / "poisons").iterdir()]
    assert len(of_both) == 2 and (of_both[0] != of_both[1]).any()
    group = blocks(written)[0].groups[-1]
    assert group.circumstances == ("2 surrogates", "stopped at different epochs (full)")


@pytest.mark.parametrize(
    ("stagger", "epochs"), [("", ()), ("firstn", (0, 1, 2, 3)), ("full", (0, 3, 6, 10)), ("inbetween", (2, 4, 6, 8))]
)
def test_where_surrogates_stop(stagger, epochs):
    assert staggered(stagger, 10, 4) == epochs


@pytest.mark.parametrize(
    ("stagger", "surrogates", "message"),
    [
        ("odd", 3, "stagger='odd' and surrogates=3; known: firstn, full, inbetween, with at least 2 surrogates"),
        ("full", 1, "stagger='full' and surrogates=1; known: firstn, full, inbetween, with at least 2 surrogates"),
        ("firstn", 6, "surrogates=6 with stagger='firstn'; there are 4 epochs of a surrogate"),
    ],
)
def test_staggers_that_cannot_be(stagger, surrogates, message, tiny):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Scenario(tiny, (ATTACK,), (), (1,), surrogates=surrogates, stagger=stagger)


@pytest.mark.parametrize("field", ["victim_network", "surrogate_network"])
def test_a_wrong_network_is_one_clear_line(field, tiny):
    with pytest.raises(ValueError, match=r"^unknown network 'magic'; known: "):
        Scenario(tiny, (), (), (0,), **{field: "magic"})
    with pytest.raises(ValueError, match=r"^network 'flat\(3\)': options are written name=value$"):
        Scenario(tiny, (), (), (0,), **{field: "flat(3)"})


def test_filters_rank_the_whole_poisoned_set(tiny, tmp_path, monkeypatch):
    seen = {}
    genuine = Protocol.classifier

    def kept(self, dataset, seed, **options):
        seen[len(seen)] = dataset.images
        return genuine(self, dataset, seed, **options)

    monkeypatch.setattr(Protocol, "classifier", kept)
    defences = ("filt('jpeg(quality=5)', fraction=0.05)", "filt('jpeg(quality=5)', fraction=0.05, compat=True)")
    scenario = Scenario(tiny, (ATTACK,), defences, (0,))
    written = rows(run_scenario(scenario, tmp_path))
    assert [row["defence"] for row in written[2:]] == list(defences)
    poison = load_poison(next((tmp_path / "poisons").iterdir()))
    _, poisoned, filtered, published = seen.values()
    changed = np.flatnonzero((filtered != poisoned).any((1, 2, 3)))
    top = highest(energies(energy_for((8, 8, 1)), poisoned), 0.05)
    assert len(top) == 25 and set(changed) <= set(top) and len(changed) > 20
    assert set(poison.index) - set(changed)  # some poisons have a low energy and stay
    also = np.flatnonzero((published != poisoned).any((1, 2, 3)))
    assert len(set(poison.index) - set(also)) <= 2 < len(set(poison.index) - set(changed))

    grids, _ = exhibits(scenario, tmp_path)
    shown = poison.images[:6]
    after = {grid["title"]: (grid["after"] != shown).any((1, 2, 3)) for grid in grids[1:]}
    np.testing.assert_array_equal(
        after[f"{ATTACK}: poisons before and after {defences[0]}"], np.isin(poison.index[:6], changed)
    )
    assert after[f"{ATTACK}: poisons before and after {defences[1]}"].sum() >= 5


def test_a_surrogate_needs_the_classes_of_the_training_set(tiny, tmp_path):
    digits = load_source("digits[:200]")
    two = dataclasses.replace(digits.select(digits.labels < 2), classes=("0", "1"))
    write_npz(two, tmp_path / "two.npz")
    other = dataclasses.replace(tiny, public=f"npz:{tmp_path / 'two.npz'}")
    attack = "narcissus(steps=5, count=20, epsilon=0.3, batch_size=20)"
    with pytest.raises(ValueError, match=r"two.npz has 2 classes and digits.* has 10; this attack's surrogate"):
        run_scenario(Scenario(other, (attack,), (), (1,)), tmp_path / "out")


@pytest.mark.parametrize(
    ("attacks", "defences", "message"),
    [
        (("magic",), (), "attack is 'magic'; known: "),
        (("pattern(",), (), "not of the form"),
        (("pattern(3)",), (), "options are written name=value"),
        ((ATTACK,), ("jpeg", "gauss"), "unknown purifier 'gauss'"),
        ((ATTACK,), ("jpeg(quality=0)",), "quality=0; JPEG accepts whole numbers from 1 to 95"),
        (("narcissus(through='langevn()')",), (), "unknown purifier 'langevn'"),
        (("badnets(count=5, target=12)",), (), "target is 12; the labels of this data are"),
        (("narcissus(through='jpeg')",), (), "mode='exact'; JPEG and truncation have no gradient"),
        (("narcissus(through='jpeg', gradient='exakt')",), (), "mode='exakt'; known: exact, truncated"),
        (("narcissus(through='filt(\"jpeg\", compat=True)', gradient='straight_through')",), (), "is for tables, not"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(attacks, defences, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_scenario(Scenario(tiny, attacks, defences, (0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("behind", "message"),
    [("none", "unknown purifier 'none'"), ("puregen-filt-compat", "is for tables, not for attack")],
)
def test_what_no_attacker_trains_behind_is_found_before_anything_is_written(
    behind, message, tiny, tmp_path, monkeypatch
):
    tables = Scenario(tiny, ("narcissus(count=20)",), (), (0,), surrogate_defence=behind)
    monkeypatch.setitem(PRESETS, "puregen-filt-compat", "filt('jpeg', compat=True)")  # digits have no timestep 125
    with pytest.raises(ValueError, match=message):
        run_scenario(tables, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("gradient_matching(criterion=['xent'])", r"^criterion is \['xent'\]; known: |check_criterion"),
        ("pattern(fraction='1%')", r"^fraction is '1%'; it must be above 0 and at most 1$|poison_count"),
        (
            "narcissus(count=3, through='langevin()', gradient_difference='x')",
            r"^difference='x'; it must be abo|Adaptive",
        ),
    ],
)
def test_values_of_a_wrong_type_are_too(attack, message, tiny, tmp_path):
    with pytest.raises(Exception, match=message):  # another one where types are checked as well
        run_scenario(Scenario(tiny, (attack,), (), (0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_victims_are_no_twins_of_the_surrogates(tiny):
    assert Scenario(tiny, (ATTACK,), (), (9_999, 10_001)).seeds == (9_999, 10_001)
    for seeds, surrogates in (((3, 10_000), 1), ((10_002,), 3)):
        with pytest.raises(ValueError, match=rf"^seeds={seeds[-1]}; the attacker's models are trained with this one"):
            Scenario(tiny, (ATTACK,), (), seeds, surrogates=surrogates)


def test_protocols_can_be_loaded_and_described():
    demo = protocol("demo")
    train, test = demo.load()
    public = load_source(demo.public)
    shared = {bytes(image) for image in train.images} & {bytes(image) for image in [*test.images, *public.images]}
    assert len(shared) <= 2 and len(train) >= demo.recipe.batch_size  # a few scans are equal to the last grey level
    assert demo.victim == "resnet9-w8" and protocol("paper").victim == "resnet18"
    for name in ("demo", "cpu", "cpu-small", *PAPER):
        config = json.loads(json.dumps(protocol(name).config()))
        assert config["network"] in NETWORKS and config["train"] == protocol(name).train
        network, options = config["network"], protocol(name).options
        nnx.eval_shape(lambda network=network, options=options: build(network, options, nnx.Rngs(0)))
    # Published: classical momentum. Nesterov's, which is usual here, is not named in rows.
    assert protocol("paper").config()["recipe"]["nesterov"] is False
    assert "nesterov" not in protocol("cpu").config()["recipe"]
    with pytest.raises(ValueError, match="unknown protocol 'gpu'; known: demo, cpu, cpu-small, paper, paper-hlb, "):
        protocol("gpu")


def test_published_victims_of_transfer_learning(tiny, tmp_path, monkeypatch):
    """Of the protocols `paper`: settings reach the training, and the rows."""
    paper = protocol("paper")
    assert paper.config()["head"] == paper.head and paper.config()["fine_tuning"]["schedule"] == "multistep60"
    assert "head" not in protocol("cpu").config() and "fine_tuning" not in protocol("cpu").config()
    seen = []

    def watch(name):
        genuine = getattr(victims, name)

        def watched(*given, **options):
            seen.append(options)
            return genuine(*given, **options)

        monkeypatch.setattr(victims, name, watched)

    watch("linear_transfer")
    watch("fine_tune")
    slow = dataclasses.replace(paper.fine_tuning, epochs=1, batch_size=50)
    own = dataclasses.replace(tiny, head=paper.head, fine_tuning=slow)
    for training in ("linear", "fine-tune"):
        run_scenario(Scenario(own, (), (), (0,), training=training), tmp_path / training)
    assert seen[0]["epochs"] == 40 and seen[0]["weight_decay"] == 5e-4
    assert seen[1]["recipe"] is slow


def test_a_surrogate_sees_a_source_of_its_own(tiny, tmp_path, monkeypatch):
    """As under `paper-tiny-imagenet`, whose public images have other classes."""
    assert protocol("paper-tiny-imagenet").surrogate_source == protocol("paper-tiny-imagenet").train
    seen = []
    genuine = Protocol.classifier

    def kept(self, dataset, seed, **options):
        seen.append(dataset.source if options.get("surrogate") else "")
        return genuine(self, dataset, seed, **options)

    monkeypatch.setattr(Protocol, "classifier", kept)
    own = dataclasses.replace(tiny, surrogate_source="digits[40:240]", public="digits[:3]")
    run_scenario(Scenario(own, (TARGETED,), (), (0,)), tmp_path)
    assert any("[40:240]" in source for source in seen)


def test_other_data_are_used_as_they_are(tiny, tmp_path):
    digits = load_source("digits[:200]")
    write_npz(digits, tmp_path / "own.npz")
    own = dataclasses.replace(tiny, train=f"npz:{tmp_path / 'own.npz'}")
    written = rows(run_scenario(Scenario(own, (), (), (0,)), tmp_path / "out"))
    assert len(written) == 1 and written[0]["data"] == own.train
    assert np.isfinite(written[0]["natural_accuracy"])
    assert len(read_rows(tmp_path / "out" / "results.jsonl")) == 1
