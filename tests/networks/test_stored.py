"""Networks as files: they come back as they were, or not at all."""

from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpurify.networks import NETWORKS, ConvEnergy, freeze
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import build, load_network, save_network

run = jax.jit(lambda model, *inputs: model(*inputs))
IMAGES = jnp.asarray(np.random.RandomState(0).uniform(size=(2, 8, 8, 1)), jnp.float32)
SMALL = {
    "conv_energy": ({"features": 2, "channels": 1, "size": 8}, (IMAGES,)),
    "residual_energy": ({"features": 2, "channels": 1}, (IMAGES,)),
    "unet": (
        {"block_channels": [8, 8], "layers_per_block": 1, "attention_levels": [1], "channels": 1},
        (IMAGES, jnp.array([3, 7])),
    ),
    "resnet9": ({"width": 2, "channels": 1, "mean": [0.3], "std": [0.4]}, (IMAGES,)),
}


@pytest.mark.parametrize("network", SMALL)
def test_a_network_comes_back(network, tmp_path):
    options, inputs = SMALL[network]
    frozen = freeze(build(network, options, nnx.Rngs(1)))
    path = tmp_path / "weights.safetensors"
    save_network(path, frozen, network=network, options=options, card={"data": "digits", "langevin": {"steps": 5}})
    loaded, card = load_network(path)
    assert card == {"data": "digits", "langevin": {"steps": 5}}
    assert jax.tree.structure(loaded) == jax.tree.structure(frozen)
    jax.tree.map(np.testing.assert_array_equal, loaded.state, frozen.state)
    np.testing.assert_array_equal(run(loaded, *inputs), run(frozen, *inputs))
    assert run._cache_size() >= 1 and [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "energy.safetensors"
    frozen = freeze(ConvEnergy(2, 1, 8, rngs=nnx.Rngs(0)))
    path.write_bytes(b"earlier")

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_network(path, frozen, network="conv_energy", options={"features": 2, "channels": 1, "size": 8})
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"earlier"


class Shifted(nnx.Module):
    """A network with a number that has no axes."""

    def __init__(self, *, rngs):
        self.shift = nnx.Param(jnp.float32(rngs.params.uniform(())))

    def __call__(self, images):
        return images + self.shift[...]


def test_numbers_without_axes_and_many_networks(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "shifted", Shifted)
    frozen = freeze(Shifted(rngs=nnx.Rngs(3)))
    save_network(tmp_path / "a.safetensors", frozen, network="shifted", options={})
    loaded, card = load_network(tmp_path / "a.safetensors")
    assert card == {} and jax.tree.leaves(loaded)[0].shape == ()
    np.testing.assert_array_equal(loaded(IMAGES), frozen(IMAGES))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "energy.safetensors"
    frozen = freeze(ConvEnergy(2, 1, 8, rngs=nnx.Rngs(0)))
    save_network(path, frozen, network="conv_energy", options={"features": 2, "channels": 1, "size": 8})
    return path, load_file(path)


@pytest.mark.parametrize(
    ("network", "made", "said"),
    [
        ("resnet9", {"width": 2, "mean": [0.3, 0.3, 0.3]}, {"width": 2}),
        ("unet", {"block_channels": [8, 8], "layers_per_block": 1, "attention_levels": [1], "head_channels": 4}, None),
        ("residual_energy", {"features": 2}, {"features": 4}),
    ],
)
def test_options_of_another_network_are_refused_before_anything_is_written(network, made, said, tmp_path):
    frozen = freeze(build(network, made, nnx.Rngs(0)))
    said = {name: value for name, value in made.items() if name != "head_channels"} if said is None else said
    with pytest.raises(ValueError, match=rf"^network '{network}' with options .* is another one than that whose"):
        save_network(tmp_path / "x.safetensors", frozen, network=network, options=said)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(saved, tmp_path):
    path, tensors = saved
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not weights", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a \.safetensors file"):
            load_network(path)
    with pytest.raises(ValueError, match="no weights at"):
        load_network(tmp_path / "absent.safetensors")
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not say which network it belongs to; read published weights"):
        load_network(path)
    for header in ({"network": "conv_energy"}, {"network": "conv_energy", "options": "{", "card": "{}"}):
        save_file(tensors, path, header)
        with pytest.raises(ValueError, match=r"energy\.safetensors: its header is damaged"):
            load_network(path)


def header(**options):
    import json

    return {"network": "conv_energy", "options": json.dumps({"features": 2, "channels": 1, "size": 8, **options})}


def test_weights_that_do_not_fit_are_refused(saved):
    path, tensors = saved
    name = next(name for name in tensors if name.endswith("kernel"))
    about = {**header(), "card": "{}"}
    save_file({key: value for key, value in tensors.items() if key != name}, path, about)
    with pytest.raises(ValueError, match=rf"missing tensors \['{name}'\], left-over tensors \[\]"):
        load_network(path)
    save_file({**tensors, "extra": np.zeros(2)}, path, about)
    with pytest.raises(ValueError, match=r"left-over tensors \['extra'\]"):
        load_network(path)
    save_file({**tensors, name: np.zeros((1, 2), np.float32)}, path, about)
    with pytest.raises(ValueError, match=rf"tensor {name} has shape \(1, 2\), expected"):
        load_network(path)
    save_file(tensors, path, {**header(speed=3), "card": "{}"})
    with pytest.raises(ValueError, match="network 'conv_energy' with options"):
        load_network(path)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"unknown network 'vgg99'; known: .*conv_energy"):
        build("vgg99", {}, nnx.Rngs(0))
    assert isinstance(freeze(build("conv_energy", {"size": 8}, nnx.Rngs(0))), Frozen)
