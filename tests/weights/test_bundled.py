"""The models that come with the package: small, described, and able to tell poisoned images from clean ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.purifiers import energy_for, make_purifier
from jaxpurify.evaluate.statistics import auroc
from jaxpurify.purify.filter import energies
from jaxpurify.random import image_keys
from jaxpurify.weights.catalogue import BUNDLED, bundled_for, bundled_path, load_weights


def test_together_they_have_at_most_12_megabytes():
    assert sum(bundled_path(name).stat().st_size for name in BUNDLED) <= 12e6
    for shape in ((8, 8, 1), (32, 32, 3)):
        assert {BUNDLED[bundled_for(kind, shape)][0] for kind in ("energy", "noise")} == {"energy", "noise"}


@pytest.mark.parametrize("name", BUNDLED)
def test_cards_say_data_protocol_time_command_and_scores(name):
    _, card = load_weights(name)
    assert card["images"] > 0 and card["seconds"] > 0 and name in card["command"]
    assert card["source"].endswith(("digits/public", "train[25000:]")) and "public" in card["protocol"]
    scores = card["scores"]
    assert 0 < scores["survival of the perturbation"] < 1 and scores["PSNR of purified clean images, decibel"] > 15
    if BUNDLED[name][0] == "energy":
        assert scores["AUROC of poisoned above clean energy"] > 0.9
        assert scores["mean energy of clean images"] < scores["mean energy of poisoned images"]
        assert scores["mean energy after 5000 steps from clean images"] < scores["mean energy of poisoned images"]


def test_the_energy_of_cifar10_rises_with_a_perturbation(cifar10):
    clean = load_source(f"{cifar10}/train[:64]").images
    signs = np.asarray(jax.random.rademacher(jax.random.key(0), clean.shape[1:], np.int8))
    poisoned = np.clip(clean.astype(np.int16) + 8 * signs, 0, 255).astype(np.uint8)
    energy = energy_for((32, 32, 3))
    assert auroc(energies(energy, clean), energies(energy, poisoned)) > 0.95


def test_the_diffusion_model_of_cifar10_removes_perturbations(cifar10):
    """The more of them the further it goes, and on the way back to images: a model of nothing would leave noise."""
    clean = load_source(f"{cifar10}/train[:8]").images.astype(np.float32) / 255
    signs = np.asarray(jax.random.rademacher(jax.random.key(0), clean.shape[1:], np.float32))
    poisoned = np.clip(clean + 8 / 255 * signs, 0, 1)
    keys, survivals = image_keys(jax.random.key(1), jnp.arange(8)), []
    for spec in ("diffusion(timestep=25, steps=5)", "fast"):
        purifier = make_purifier(spec, (32, 32, 3))
        of_clean, of_poisoned = (np.asarray(purifier(keys, jnp.asarray(images))) for images in (clean, poisoned))
        assert (np.abs(of_poisoned - poisoned) > 1 / 255).mean() > 0.5
        lengths = [np.sqrt((each**2).sum((1, 2, 3))) for each in (of_poisoned - of_clean, poisoned - clean)]
        survivals.append((lengths[0] / lengths[1]).mean())
        decibel = -10 * np.log10(((of_clean - clean) ** 2).mean())
        assert decibel > 22  # at timestep 75 the noise alone, left as it is, would give 18
    assert 0.9 > survivals[0] > 1.2 * survivals[1]


def test_long_chains_of_the_energy_of_cifar10_stay(cifar10):
    """As `langevin(steps=5000)` runs them, before anything is clipped."""
    images = load_source(f"{cifar10}/train[:1]").images.astype(np.float32) / 255
    energy = energy_for((32, 32, 3))
    chain = make_purifier("langevin(steps=5000)", (32, 32, 3))
    ends = np.asarray(chain(image_keys(jax.random.key(0), jnp.arange(1)), jnp.asarray(images)))
    noise = jax.random.uniform(jax.random.key(1), (8, 32, 32, 3))
    assert ends.min() > -0.5 and ends.max() < 1.5
    assert np.abs(ends - images).mean() > 0.05
    assert np.asarray(energy(jnp.asarray(ends))).max() < float(energy(noise).min())
