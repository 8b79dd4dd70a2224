"""Small data on disk, small weights, and a way to run a command and read what it said."""

import io

from flax import nnx
import numpy as np
from PIL import Image
import pytest

from jaxpurify.cli.main import main
from jaxpurify.networks.energy import ConvEnergy
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.stored import save_network


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photographs(here):
    """A folder of 2 classes and 13 images of 12 x 12 x 3, whose names do not sort like numbers."""
    random = np.random.default_rng(0)
    for label, count in (("cat", 6), ("dog", 7)):
        (here / "photos" / label).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            (here / "photos" / label / f"{number * 5}.png").write_bytes(png(pixels))
    return "folder:photos"


@pytest.fixture
def archive(here):
    """An .npz of 20 images of 8 x 8 x 1 with named classes."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(here / "data.npz", images=images, labels=np.arange(20) % 3, classes=np.array(["a", "b", "c"]))
    return "npz:data.npz"


@pytest.fixture(scope="session")
def energy_weights(tmp_path_factory):
    """A freshly initialised energy for 8 x 8 x 1 images."""
    path = tmp_path_factory.mktemp("weights") / "energy.safetensors"
    options = {"features": 4, "channels": 1, "size": 8}
    save_network(path, freeze(ConvEnergy(**options, rngs=nnx.Rngs(0))), network="conv_energy", options=options)
    return path


@pytest.fixture
def refused(capfd):
    """Runs a command that must be refused: status 2 and one line on stderr, which is returned.

    There is no output either, which would mean that work had begun, unless that is `begun`.
    """

    def run(*arguments, begun=False):
        capfd.readouterr()
        assert main(list(map(str, arguments))) == 2
        output, errors = capfd.readouterr()
        assert errors.count("\n") == 1 and errors.endswith("\n")
        assert bool(output) == begun
        return errors

    return run


@pytest.fixture
def everything(here):
    """Every path below the current folder, to see that nothing was left behind."""
    return lambda: sorted(str(path.relative_to(here)) for path in here.rglob("*"))
