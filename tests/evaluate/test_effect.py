"""Measures of a purifier on the bundled digit models: what must hold of any purifier that is of use."""

import jax
import numpy as np
import pytest

from jaxpurify.attack.pattern import pattern
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.crossing import crossing, parts
from jaxpurify.evaluate.curves import curves, curves_figure
from jaxpurify.evaluate.effect import Effect, effect
from jaxpurify.evaluate.effect_report import effect_report
from jaxpurify.evaluate.purifiers import energy_for, make_purifier
from jaxpurify.evaluate.statistics import auroc
from jaxpurify.purify.combine import Identity
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import energies
from tests.evaluate.test_report import check_self_contained

KEY = jax.random.key(1)
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def pair():
    """Forty digits that no generative model saw, with and without a trigger."""
    train = load_source("digits/train")
    poison = pattern(train.images, train.labels, jax.random.key(5), target=7, epsilon=0.15, count=40)
    return train.images[poison.index], poison.images


@pytest.fixture(scope="module")
def measured(pair):
    return effect(make_purifier("digits-ebm", SHAPE), *pair, key=KEY, energy=energy_for(SHAPE))


@pytest.fixture(scope="module")
def crossings(pair):
    found = {}
    for spec, steps in (("digits-ebm", [10, 40, 100]), ("diffusion(timestep=75, steps=8)", [10, 40, 75])):
        (part,) = parts(make_purifier(spec, SHAPE))
        found[part.name] = (part.own, crossing(part.at, *pair, steps, key=KEY))
    return found


def test_poisons_have_the_higher_energy_and_purification_lowers_it(measured):
    assert measured.auroc == auroc(measured.energies["clean"], measured.energies["poisoned"]) > 0.9
    assert measured.energies["purified poisoned"].mean() < measured.energies["poisoned"].mean()
    assert measured.auroc_purified < measured.auroc - 0.2


@pytest.mark.parametrize("name", ["Langevin steps", "diffusion timesteps"])
def test_less_survives_of_the_perturbation_the_longer_it_is_purified(crossings, name):
    own, found = crossings[name]
    survival = found.survival.mean(1)
    assert survival[0] == 1 and (np.diff(survival) < 0).all() and survival[-1] < 0.7
    assert own in (150, 75)


@pytest.mark.parametrize("name", ["Langevin steps", "diffusion timesteps"])
def test_the_distances_cross_within_the_settings_that_are_used(crossings, name):
    own, found = crossings[name]
    assert (np.diff(found.to_poisoned.mean(1)) > 0).all()
    assert found.point is not None and 0 < found.point <= own


SHORT = ("langevin(steps=5)", "diffusion(timestep=9, steps=3)")


@pytest.mark.parametrize("spec", [*SHORT, "|".join(SHORT)])
def test_purification_is_not_the_identity(spec, pair):
    found = effect(make_purifier(spec, SHAPE), *pair, key=KEY)
    for name in ("clean", "poisoned"):
        assert (found.images[name] != found.images[f"purified {name}"]).mean() > 0.5
    assert found.energies == {} and found.auroc is None and found.auroc_purified is None


def test_noise_is_that_of_the_positions_in_the_source(pair):
    purifier, index = make_purifier(SHORT[0], SHAPE), np.arange(30, 40)
    whole = effect(purifier, *pair, key=KEY, batch_size=10)
    part = effect(purifier, *(images[index] for images in pair), key=KEY, index=index, batch_size=10)
    for name in ("purified clean", "purified poisoned"):
        np.testing.assert_array_equal(part.images[name], whole.images[name][index])


def test_chains_of_5000_steps_stay_with_natural_images(pair):
    clean = pair[0][:4]
    far = purify(make_purifier("langevin(steps=5000)", SHAPE), clean, key=KEY, batch_size=4)
    ink = far.astype(float).mean((1, 2, 3)) / 255
    assert ((ink > 0.1) & (ink < 0.6)).all() and (far.std((1, 2, 3)) > 25).all()
    # Energies of digits, and far below those of noise.
    natural, reached = (energies(energy_for(SHAPE), images).mean() for images in (clean, far))
    noise = energies(energy_for(SHAPE), np.random.default_rng(0).integers(0, 256, clean.shape).astype(np.uint8)).mean()
    assert abs(reached - natural) < 0.1 * (noise - natural)


def test_the_identity_leaves_everything(pair):
    found = effect(Identity(), *pair, key=KEY)
    np.testing.assert_allclose(found.survival, 1)
    assert np.isinf(found.psnr["purified clean"]).all()
    np.testing.assert_array_equal(found.psnr["poisoned"], found.psnr["purified poisoned"])


def test_clean_images_pay_little(measured):
    assert np.median(measured.psnr["purified clean"]) > 15 and np.median(measured.survival) < 0.7


def test_the_page_is_self_contained_and_says_the_numbers(tmp_path, measured, crossings):
    path = effect_report(
        tmp_path / "page.html",
        measured,
        crossings,
        purifier="langevin(<steps>=150)",
        settings={"source": "folder:<b>", "attack": {"epsilon": 0.15}},
        seconds=3.21,
    )
    document = path.read_text()
    page = check_self_contained(document)
    point = f"{crossings['Langevin steps'][1].point:.0f}"
    for text in (
        f"{measured.auroc:.3f}",
        f"cross at {point} Langevin steps",
        "langevin(<steps>=150)",
        "attack.epsilon",
    ):
        assert text in page.text
    for text in (
        "40 poisoned images",
        "folder:<b>",
        "3.2 s",
        "Survival, diffusion timesteps",
        "Clean images, purified",
    ):
        assert text in page.text
    plain = Effect(measured.images, {}, measured.psnr, measured.survival)
    without = effect_report(tmp_path / "plain.html", plain, {}, purifier="jpeg", settings={}).read_text()
    assert "AUROC" not in without and "Crossing" not in without
    again = effect_report(tmp_path / "plain.html", plain, {}, purifier="jpeg", settings={}).read_text()
    assert again == without


def test_a_crossing_that_is_not_reached_is_said(tmp_path, measured, pair):
    found = crossing(lambda steps: Identity(), *pair, [5, 10], key=KEY)
    page = effect_report(tmp_path / "p.html", measured, {"steps": (20, found)}, purifier="x", settings={})
    assert "not reached" in page.read_text() and "never moves further" in page.read_text()


def test_curves_refuse_what_does_not_fit():
    assert curves([0, 1], {"a": np.ones((2, 3))}, label="x", unit="y").startswith(b"\x89PNG")
    dark = curves([0, 1], {"a": np.ones((2, 3))}, label="x", unit="y", scheme="dark", marks={"here": 0.2})
    assert dark != curves([0, 1], {"a": np.ones((2, 3))}, label="x", unit="y", scheme="dark")
    assert "0.5 at 3" in curves_figure([3], {"a": np.full((1, 2), 0.5)}, label="x", unit="y", caption="c")
    for values in (np.ones((3, 2)), np.ones(2), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="must be finite with 2 rows"):
            curves([0, 1], {"a": values}, label="x", unit="y")


def test_refusals(pair):
    clean, poisoned = pair
    with pytest.raises(ValueError, match="must be as many, and some"):
        effect(Identity(), clean[:3], poisoned, key=KEY)
    with pytest.raises(ValueError, match="must be as many, and some"):
        effect(Identity(), clean[:0], poisoned[:0], key=KEY)
    with pytest.raises(ValueError, match="delta of image 0 is zero"):
        effect(Identity(), clean, clean, key=KEY)
