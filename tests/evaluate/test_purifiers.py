"""Purifiers by name."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.evaluate.purifiers import PRESETS, PURIFIERS, energy_for, make_purifier, weights_digest
from jaxpurify.networks import ConvEnergy, UNet, freeze
from jaxpurify.networks.stored import save_network
from jaxpurify.purify.combine import Average, Chain, Identity, Repeat
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.filter import TopEnergy
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin
from jaxpurify.purify.schedule import Schedule
from jaxpurify.purify.truncate import Truncate
from jaxpurify.weights import catalogue

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An energy and a noise predictor of 8 x 8 x 1 images, with cards."""
    folder = tmp_path_factory.mktemp("weights")
    options = {"features": 2, "channels": 1, "size": 8}
    energy = freeze(ConvEnergy(**options, rngs=nnx.Rngs(0)))
    card = {"langevin": {"step_size": 0.02, "temperature": 0.001}}
    save_network(folder / "energy.safetensors", energy, network="conv_energy", options=options, card=card)
    options = {"block_channels": [8], "layers_per_block": 1, "attention_levels": [], "channels": 1}
    noise = freeze(UNet(**options, rngs=nnx.Rngs(0)))
    card = {"max_timestep": 40, "diffusion": {"timestep": 20}}
    save_network(folder / "noise.safetensors", noise, network="unet", options=options, card=card)
    return folder


@pytest.fixture
def bundled(files, monkeypatch):
    """The package as if these files were bundled with it."""
    kinds = {"energy": ("energy", SHAPE), "noise": ("noise", SHAPE)}
    monkeypatch.setattr(catalogue, "BUNDLED", kinds)
    monkeypatch.setattr(catalogue, "bundled_path", lambda name: files / f"{name}.safetensors")


def test_each_name_makes_its_purifier(bundled):
    kinds = {
        "identity": Identity, "jpeg": Jpeg, "langevin": Langevin, "diffusion": Diffusion,
        "repeat('jpeg', 2)": Repeat, "average('jpeg', count=3, kind='median')": Average, "filt('jpeg', 0.3)": TopEnergy,
        "truncate": Truncate,
    }  # fmt: skip
    assert {spec.split("(")[0] for spec in kinds} == set(PURIFIERS)
    for spec, kind in kinds.items():
        assert type(make_purifier(spec, SHAPE)) is kind
    chained = make_purifier("jpeg(75)|identity|jpeg(quality=25)", SHAPE)
    assert isinstance(chained, Chain) and [type(stage) for stage in chained.stages] == [Jpeg, Identity, Jpeg]
    assert chained.stages[0].quality == 75 and chained.stages[2].quality == 25


def test_the_card_sets_what_the_spec_leaves_open(bundled):
    langevin = make_purifier("langevin(steps=7, temperature=0.5)", SHAPE)
    assert (langevin.steps, langevin.step_size, langevin.temperature) == (7, 0.02, 0.5)
    assert make_purifier("diffusion", SHAPE).timestep == 20
    with pytest.raises(ValueError, match="timestep=41; these weights were trained up to timestep 40"):
        make_purifier("diffusion(timestep=41)", SHAPE)


def test_weights_from_a_file(files):
    purifier = make_purifier(f"langevin(weights={str(files / 'energy.safetensors')!r}, steps=1)", SHAPE)
    keys = jax.random.split(jax.random.key(0), 2)
    images = purifier(keys, jnp.full((2, *SHAPE), 0.5))
    assert images.shape == (2, *SHAPE) and np.ptp(images) > 0
    energy = energy_for(SHAPE, str(files / "energy.safetensors"))
    assert energy(images).shape == (2,)


@pytest.fixture
def far_trained(bundled, files, tmp_path, monkeypatch):
    """A noise predictor whose card allows every published timestep and sets none."""
    noise, _ = catalogue.load_weights("noise")
    options = {"block_channels": [8], "layers_per_block": 1, "attention_levels": [], "channels": 1}
    path = tmp_path / "noise.safetensors"
    save_network(path, noise, network="unet", options=options, card={"max_timestep": 250})
    energy = tmp_path / "energy.safetensors"  # its card sets no step size or temperature
    options = {"features": 2, "channels": 1, "size": 8}
    save_network(energy, catalogue.load_weights("energy")[0], network="conv_energy", options=options)
    monkeypatch.setattr(catalogue, "bundled_path", lambda name: tmp_path / f"{name}.safetensors")


def test_presets_are_the_published_settings(far_trained):
    """PureGen, arXiv:2405.18627: T = (Langevin steps, timesteps, repetitions), in [-1, 1] units ε 0.0125, T 1e-4."""
    published = {name: make_purifier(name, SHAPE) for name in PRESETS if name.startswith("puregen-")}
    assert set(published) == {f"puregen-{name}" for name in ("ebm", "ddpm", "naive", "reps", "filt", "filt-compat")}

    def settings(purifier):
        if isinstance(purifier, Langevin):
            # The coefficient of the energy's gradient in [-1, 1] units is four times that in [0, 1] units.
            coefficient = 4 * purifier.step_size**2 / (2 * purifier.temperature)
            assert (2 * purifier.step_size, purifier.temperature, coefficient) == pytest.approx((0.0125, 1e-4, 0.78125))
            return purifier.steps
        assert isinstance(purifier, Diffusion) and purifier.sampler == "ancestral" and not purifier.compat
        assert purifier.schedule == Schedule("linear", 1000, 1e-4, 0.02)
        assert purifier.levels().tolist() == list(range(purifier.timestep))[::-1]
        return purifier.timestep

    assert settings(published["puregen-ebm"]) == 150
    assert settings(published["puregen-ddpm"]) == 75
    assert isinstance(published["puregen-naive"], Chain)
    assert [settings(stage) for stage in published["puregen-naive"].stages] == [150, 75]
    reps = published["puregen-reps"]
    assert isinstance(reps, Repeat) and reps.count == 5
    assert [settings(stage) for stage in reps.purifier.stages] == [10, 50]
    for name, compat in (("puregen-filt", False), ("puregen-filt-compat", True)):
        filtering = published[name]
        assert isinstance(filtering, TopEnergy) and filtering.fraction == 0.5 and filtering.compat is compat
        assert settings(filtering.purifier) == 125
    assert settings(make_purifier("jpeg|puregen-ebm", SHAPE).stages[1]) == 150
    averaged = make_purifier("average('puregen-ebm', 3, kind='median')", SHAPE)
    assert settings(averaged.purifier) == 150 and (averaged.count, averaged.kind) == (3, "median")


def test_fast_presets_have_fewer_steps_of_the_same_noise(far_trained):
    exact, ebm_exact, fast, filtering = (
        make_purifier(name, SHAPE) for name in ("exact", "ebm-exact", "fast", "filt-fast")
    )
    assert (exact.timestep, exact.steps, ebm_exact.steps, ebm_exact.step_size) == (75, None, 150, 0.00625)
    assert (fast.timestep, fast.levels().tolist()) == (75, [74, 56, 37, 18, 0])
    assert isinstance(filtering, TopEnergy) and (filtering.fraction, filtering.compat) == (0.5, False)
    assert (filtering.purifier.timestep, filtering.purifier.levels().tolist()) == (125, [124, 93, 62, 31, 0])
    assert {each.sampler for each in (exact, fast, filtering.purifier)} == {"ancestral"}


def test_the_fast_energy_has_as_much_noise_in_a_third_of_the_steps_and_is_of_the_energy_that_it_was_measured_with():
    ebm_exact, ebm_fast = (make_purifier(name, (32, 32, 3)) for name in ("ebm-exact", "ebm-fast"))
    assert ebm_fast.midpoint and not ebm_exact.midpoint
    assert (ebm_fast.steps, ebm_fast.temperature, ebm_exact.temperature) == (50, 0.85e-4, 1e-4)
    assert 50 * ebm_fast.step_size**2 == pytest.approx(150 * ebm_exact.step_size**2, rel=2e-3)
    with pytest.raises(ValueError, match=r"^weights 'cifar10-ebm' hold no energy network for images of"):
        make_purifier("ebm-fast", (8, 8, 1))


def test_a_digest_tells_weights_apart(tmp_path):
    options = {"features": 2, "channels": 1, "size": 8}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        energy = freeze(ConvEnergy(**options, rngs=nnx.Rngs(seed)))
        save_network(tmp_path / f"{name}.safetensors", energy, network="conv_energy", options=options)
    one, same, other = (
        weights_digest(f"langevin(weights='{tmp_path / name}.safetensors')", SHAPE) for name in ("one", "same", "other")
    )
    assert one == same != other and len(one) == 12
    assert weights_digest("jpeg", SHAPE) is None


def test_the_schedule_is_that_of_the_weights_unless_the_spec_says_otherwise(far_trained, tmp_path):
    assert make_purifier("diffusion(timestep=9)", SHAPE).schedule == Schedule()
    assert make_purifier("diffusion(timestep=9, schedule='cosine')", SHAPE).schedule == Schedule("cosine")
    noise, _ = catalogue.load_weights("noise")
    options = {"block_channels": [8], "layers_per_block": 1, "attention_levels": [], "channels": 1}
    card = {"recipe": {"schedule": {"kind": "cosine", "length": 400, "first": 1e-4, "last": 0.02}}}
    save_network(tmp_path / "cosine.safetensors", noise, network="unet", options=options, card=card)
    spec = f"diffusion(weights='{tmp_path / 'cosine.safetensors'}', timestep=9)"
    assert make_purifier(spec, SHAPE).schedule == Schedule("cosine", 400)
    assert make_purifier(spec.replace(")", ", schedule='cosine')"), SHAPE).schedule == Schedule("cosine", 400)
    assert make_purifier(spec.replace(")", ", schedule='linear')"), SHAPE).schedule == Schedule()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gauss", "unknown purifier 'gauss'; known: identity, jpeg, langevin, .*puregen-filt"),
        ("jpeg|gauss", "unknown purifier 'gauss'"),
        ("puregen-ebm(steps=3)", "'puregen-ebm' is a preset and takes no options"),
        ("langevin(steps=-1)", "steps=-1; a chain has a whole number of steps, 0 or more"),
        ("langevin(steps=1.5)", "steps"),
        ("langevin(temperature=0)", "temperature=0; it must be a number greater than 0"),
        ("langevin(step_size='x')", "step_size='x'; it must be a number greater than 0"),
        ("langevin(step_size=None)", "step_size=None; it must be a number greater than 0"),
        ("repeat(5, 3)", "purifier 5 inside of another one; it is written in quotes"),
        ("average(5)", "purifier 5 inside of another one; it is written in quotes"),
        ("filt(3)", "purifier 3 inside of another one; it is written in quotes"),
        ("langevin(stepz=3)", "purifier 'langevin' takes no option 'stepz'"),
        ("langevin(150)", "purifier 'langevin': .*positional"),
        ("jpeg(quality=100)", "quality=100; JPEG accepts whole numbers from 1 to 95"),
        ("jpeg('high')", "quality"),
        ("diffusion(timestep=0)", "timestep=0; this schedule accepts whole numbers from 1 to 1000"),
        ("diffusion(sampler='euler')", "sampler='euler'; known: ancestral, ddim"),
        ("diffusion(timestep='x')", "timestep"),
        ("repeat('jpeg', 0)", "count=0; it must be a whole number of at least 1"),
        ("repeat('gauss', 2)", "unknown purifier 'gauss'"),
        ("repeat", "purifier 'repeat': .*missing"),
        ("average('jpeg', kind='mode')", "kind='mode'; known: mean, median"),
        ("diffusion(schedule='square', timestep=9)", "schedule kind 'square'; known: linear, cosine"),
        ("filt('jpeg', fraction=1.5)", r"fraction=1\.5; it must be in \[0, 1\]"),
        ("jpeg|filt('jpeg')", "must be the outermost purifier"),
        ("repeat('puregen-filt', 2)", "timestep=125; these weights were trained up to timestep 40"),
        ("repeat('filt(\\'jpeg\\')', 2)", "must be the outermost purifier"),
        ("filt", "purifier 'filt': .*missing"),
        ("langevin(weights='noise', steps=1)", "weights 'noise' hold no energy network for images of"),
        ("diffusion(weights='energy', timestep=1)", "weights 'energy' hold no noise network for images of"),
        ("langevin(weights='/absent.safetensors')", "no weights '/absent.safetensors': neither a file nor bundled"),
    ],
)
def test_refusals(spec, message, bundled, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(ValueError, match=message) as error:
        make_purifier(spec, SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["digits-ebm", "digits-ddpm", "digits-both"])
def test_presets_of_digits_are_for_digits(preset):
    make_purifier(preset, (8, 8, 1))
    with pytest.raises(ValueError, match=r"weights 'digits-\w+' hold no \w+ network for images of \(32, 32, 3\)"):
        make_purifier(preset, (32, 32, 3))


def test_no_weights_for_a_shape():
    message = r"no bundled energy model for 9x7x3 images \(there are 8x8x1, 32x32x3\); give weights="
    with pytest.raises(ValueError, match=message):
        make_purifier("langevin", (9, 7, 3))
