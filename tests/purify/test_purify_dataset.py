"""A data set through a purifier: the same bytes for any batch size, number of devices, and after a kill."""

import inspect
import json
import os
import signal
import socket
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxpurify import random
from jaxpurify.networks import ConvEnergy, freeze
from jaxpurify.networks.stored import save_network
from jaxpurify.purify.combine import Identity, chain, repeat
from jaxpurify.purify.dataset import _Batch, purify
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin
from jaxpurify.random import image_keys, uniform
from jaxpurify.sharding import data_mesh, replicate, shard
from jaxpurify.struct import struct
from jaxpurify.types import Images, Keys

KEY = jax.random.key(2)
CALLS = []


@struct
class Darken:
    """Takes a random amount off an image, as quickly as can be; remembers how many images it was given."""

    most: float = 0.5

    def __call__(self, keys: Keys, images: Images) -> Images:
        CALLS.append(len(images))
        return darken(self.most, keys, images)


@jax.jit
def darken(most, keys, images):
    return images - most * uniform(keys, (1, 1, 1))


def one_device():
    return data_mesh(jax.devices()[:1])


def test_order_length_and_keys_are_kept(stored):
    images = stored[:21]
    purified = purify(Darken(), images, key=KEY, batch_size=8)
    assert purified.shape == images.shape and purified.dtype == np.uint8
    amount = 0.5 * np.asarray(uniform(image_keys(KEY, jnp.arange(21)), (1, 1, 1)))
    expected = np.clip(images / 255 - amount, 0, 1) * 255
    np.testing.assert_allclose(purified, expected, atol=0.501)


def test_a_part_with_its_positions_is_a_part_of_the_whole(stored):
    whole = purify(Darken(), stored[:30], key=KEY, batch_size=8)
    part = purify(Darken(), stored[10:20], key=KEY, index=np.arange(10, 20), batch_size=4)
    np.testing.assert_array_equal(part, whole[10:20])
    assert (purify(Darken(), stored[10:20], key=KEY) != part).any()


def test_there_is_one_batch_shape(stored):
    CALLS.clear()
    finished = []
    purify(Darken(), stored[:21], key=KEY, batch_size=6, progress=lambda done, total: finished.append((done, total)))
    assert CALLS == [8, 8, 8]  # rounded up to the four devices
    assert finished == [(8, 21), (16, 21), (21, 21)]


@pytest.mark.parametrize(("count", "most", "devices", "calls"), [
    (21, 16, 1, [11, 11]),  # not 16 and 16, of which 11 are there to fill up
    (97, 64, 1, [50, 50]),  # in steps of a 32nd of the most, so that there are few programs
    (98, 64, 1, [50, 50]),
    (100, 32, 1, [25] * 4),
    (100, 96, 2, [52, 52]),
    (65, 64, 1, [34, 34]),  # not 64 and 1, and not three of 22
    (100, 64, 4, [52, 52]),
    (99, 50, 1, [50, 50]),
    (200, 64, 1, [50] * 4),
    (45, 10, 1, [9] * 5),
    (80, 32, 1, [27] * 3),
    (95, 24, 1, [19] * 5),  # one more batch, and none to fill up
    (26, 32, 1, [32]),
    (30, 7, 4, [8] * 4),
    (17, 16, 4, [12, 12]),
])  # fmt: skip
def test_batches_are_no_larger_than_the_images_need(stored, count, most, devices, calls):
    CALLS.clear()
    mesh = data_mesh(jax.devices()[:devices])
    photographs = np.repeat(np.repeat(stored[:count], 23, 1), 23, 2)  # of more than 2¹⁵ pixels
    purified = purify(Darken(), photographs, key=KEY, batch_size=most, mesh=mesh)
    assert calls == CALLS
    np.testing.assert_array_equal(purified[:, ::23, ::23], purify(Darken(), stored[:count], key=KEY, batch_size=128))


@pytest.mark.parametrize(("count", "size", "most", "calls"), [
    (2, 8, 128, [128]),
    (200, 8, 128, [128, 128]),
    (21, 8, 16, [16, 16]),
    (2, 32, 128, [32]),
    (33, 32, 128, [64]),
    (130, 32, 128, [96, 96]),  # not two of 68
    (2, 64, 128, [8]),
])  # fmt: skip
def test_small_images_need_few_programs(stored, count, size, most, calls):
    CALLS.clear()
    images = np.repeat(np.repeat(stored[:count], size // 8, 1), size // 8, 2)
    purified = purify(Darken(), images, key=KEY, batch_size=most, mesh=one_device())
    assert calls == CALLS
    smallest = purify(Darken(), stored[:count], key=KEY, batch_size=1, mesh=one_device())
    np.testing.assert_array_equal(purified[:, :: size // 8, :: size // 8], smallest)


def test_plain_functions_are_purifiers_too(stored, tmp_path):
    np.testing.assert_array_equal(purify(lambda keys, images: 1 - images, stored[:5], key=KEY), 255 - stored[:5])
    with pytest.raises(ValueError, match="<lambda> in the purifier cannot be told from others; without directory"):
        purify(lambda keys, images: 1 - images, stored[:5], key=KEY, directory=tmp_path / "partial")
    assert not (tmp_path / "partial").exists()
    twice = chain(lambda keys, images: 1 - images, repeat(lambda keys, images: 0.5 * images, 2))
    assert (np.abs(purify(twice, stored[:5], key=KEY) - (255.0 - stored[:5]) / 4) <= 1).all()
    bright = Langevin(lambda images: -images.sum((1, 2, 3)), 0.1, 0.01, 2)
    assert purify(bright, stored[:5], key=KEY).mean() > stored[:5].mean() + 50


def test_nothing_to_do(stored, tmp_path):
    assert purify(Darken(), stored[:0], key=KEY).shape == (0, 8, 8, 1)
    assert purify(Darken(), stored[:0], key=KEY, directory=tmp_path / "none").shape == (0, 8, 8, 1)


@pytest.fixture(scope="module")
def noise_images():
    return np.random.RandomState(0).randint(0, 256, (80, 32, 32, 3)).astype(np.uint8)


def test_devices_and_batch_sizes_do_not_matter_for_an_energy(noise_images):
    purifier = Langevin(freeze(ConvEnergy(8, rngs=nnx.Rngs(0))), 0.02, 1e-4, 5)
    expected = purify(purifier, noise_images, key=KEY, batch_size=16, mesh=one_device())
    assert (expected != noise_images).mean() > 0.9
    np.testing.assert_array_equal(purify(purifier, noise_images, key=KEY, batch_size=16), expected)
    # Identical where this was written; another machine's arithmetic may round a value in 100,000 to the next level.
    other = purify(purifier, noise_images, key=KEY, batch_size=40).astype(int)
    assert np.abs(other - expected).max() <= 1
    assert (other != expected).mean() <= 1e-5


def test_devices_and_batch_sizes_do_not_matter_for_a_chain(energies, noises, stored):
    purifier = chain(Langevin(energies[0], 0.02, 1e-3, 3), Diffusion(noises[0], timestep=5))
    images = stored[:1600]
    expected = purify(purifier, images, key=KEY, batch_size=160, mesh=one_device())
    np.testing.assert_array_equal(purify(purifier, images, key=KEY, batch_size=160), expected)
    other = purify(purifier, images, key=KEY, batch_size=400).astype(int)
    assert np.abs(other - expected).max() <= 1
    assert (other != expected).sum() <= 1  # of 102,400 values


def test_it_compiles_without_collectives(energies, stored, monkeypatch):
    # As on an accelerator: the generator that is quicker on CPU asks all devices for one of their numbers.
    monkeypatch.setattr(random, "_has_fast_bits", lambda keys: False)
    jax.clear_caches()
    mesh = data_mesh()
    purifier = chain(Jpeg(50), Langevin(energies[0], 0.02, 1e-3, 3))
    index, images = shard(mesh, (np.arange(8, dtype=np.uint32), stored[:8]))
    program = jax.jit(_Batch(mesh)).lower(*replicate(mesh, (purifier, KEY)), index, images).compile()
    text = program.as_text()
    assert "f32[2,8,8,1]" in text  # two of the eight images on each device
    purified = program(*replicate(mesh, (purifier, KEY)), index, images)[0]
    assert np.abs(np.asarray(purified).astype(int) - purify(purifier, stored[:8], key=KEY)).max() <= 1
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


class Stop(Exception):
    pass


def stop_at(count):
    def progress(done, total):
        if done >= count:
            raise Stop

    return progress


def test_an_interrupted_run_continues_without_redoing_batches(stored, tmp_path):
    images, folder = stored[:50], tmp_path / "partial"
    expected = purify(Darken(), images, key=KEY, batch_size=8)
    with pytest.raises(Stop):
        purify(Darken(), images, key=KEY, batch_size=8, directory=folder, progress=stop_at(16))
    CALLS.clear()
    finished = []
    # Other batch sizes and devices take over where it stopped.
    resumed = purify(
        Darken(), images, key=KEY, batch_size=10, mesh=one_device(), directory=folder,
        progress=lambda done, total: finished.append(done),
    )  # fmt: skip
    np.testing.assert_array_equal(resumed, expected)
    assert finished == [26, 36, 46, 50] and len(CALLS) == 4
    CALLS.clear()
    np.testing.assert_array_equal(purify(Darken(), images, key=KEY, directory=folder), expected)
    assert CALLS == []


KILLED = """
import json, os, signal, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jaxpurify.networks.stored import load_network
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.langevin import Langevin

folder = sys.argv[1]
images = np.load(folder + "/images.npy")
def progress(done, total):
    if done >= 32:
        os.kill(os.getpid(), signal.SIGKILL)
energy = load_network(folder + "/energy.safetensors")[0]
purify(Langevin(energy, 0.02, 1e-3, 3), images, key=jax.random.key(2), batch_size=16,
       directory=folder + "/partial", progress=progress)
"""


HOST = """
import sys
import jax, numpy as np
from jaxpurify.networks.stored import load_network
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.langevin import Langevin

folder, number = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[3], 2, number)
assert (jax.device_count(), jax.local_device_count()) == (4, 2)
images = np.load(folder + "/images.npy")
own = np.arange(len(images))[number::2]
energy = load_network(folder + "/energy.safetensors")[0]
purified = purify(Langevin(energy, 0.02, 1e-3, 3), images[own], key=jax.random.key(2), index=own, batch_size=16)
np.save(f"{folder}/{number}.npy", purified)
"""


def test_hosts_purify_their_own_parts(energies, stored, tmp_path):
    np.save(tmp_path / "images.npy", stored[:50])
    options = {"features": 4, "channels": 1, "size": 8}
    save_network(tmp_path / "energy.safetensors", energies[0], network="conv_energy", options=options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    hosts = [
        subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), str(number), address], env=environment)
        for number in range(2)
    ]
    assert [host.wait(timeout=300) for host in hosts] == [0, 0]
    parts = [np.load(tmp_path / f"{number}.npy") for number in range(2)]
    whole = purify(Langevin(energies[0], 0.02, 1e-3, 3), stored[:50], key=KEY)
    for number, part in enumerate(parts):
        assert np.abs(part.astype(int) - whole[number::2]).max() <= 1


def test_a_killed_process_is_continued_by_another(energies, stored, tmp_path):
    images = stored[:96]
    np.save(tmp_path / "images.npy", images)
    path = tmp_path / "energy.safetensors"
    options = {"features": 4, "channels": 1, "size": 8}
    save_network(path, energies[0], network="conv_energy", options=options)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert np.load(tmp_path / "partial" / "finished.npy").sum() == 32
    purifier = Langevin(energies[0], 0.02, 1e-3, 3)
    left = []
    resumed = purify(
        purifier, images, key=KEY, batch_size=16, directory=tmp_path / "partial",
        progress=lambda done, total: left.append(done),
    )  # fmt: skip
    assert left == [48, 64, 80, 96]
    np.testing.assert_array_equal(resumed, purify(purifier, images, key=KEY, batch_size=16))


@pytest.mark.parametrize(
    "changed", ["images", "key", "purifier", "step size", "temperature", "midpoint", "index", "weights"]
)
def test_an_unfinished_result_of_something_else_is_refused(changed, energies, stored, tmp_path):
    def call(purifier, images, key, index):
        return purify(purifier, images, key=key, index=index, batch_size=8, directory=tmp_path, progress=stop_at(8))

    same = {"purifier": Langevin(energies[0], 0.02, 1e-3, 1), "images": stored[:16], "key": KEY, "index": np.arange(16)}
    with pytest.raises(Stop):
        call(**same)
    before = json.loads((tmp_path / "fingerprint.json").read_text())
    other = {
        "images": {"images": stored[1:17]},
        "key": {"key": jax.random.key(3)},
        "purifier": {"purifier": Langevin(energies[0], 0.02, 1e-3, 2)},
        "step size": {"purifier": Langevin(energies[0], 0.03, 1e-3, 1)},
        "temperature": {"purifier": Langevin(energies[0], 0.02, 2e-3, 1)},
        "midpoint": {"purifier": Langevin(energies[0], 0.02, 1e-3, 1, midpoint=True)},
        "index": {"index": np.arange(1, 17)},
        "weights": {"purifier": Langevin(energies[1], 0.02, 1e-3, 1)},
    }[changed]
    with pytest.raises(ValueError, match="holds an unfinished result of other images, key or purifier; remove it"):
        call(**{**same, **other})
    assert json.loads((tmp_path / "fingerprint.json").read_text()) == before


@struct
class Halve:
    """Makes images of half the height."""

    def __call__(self, keys, images):
        return images[:, ::2]


def test_refusals(stored):
    with pytest.raises(ValueError, match="batch_size=0; it must be at least 1"):
        purify(Identity(), stored[:4], key=KEY, batch_size=0)
    with pytest.raises(ValueError, match="index has 3 positions for 4 images"):
        purify(Identity(), stored[:4], key=KEY, index=np.arange(3))
    with pytest.raises(ValueError, match=r"made images \(4, 8, 1\) of \(8, 8, 1\)"):
        purify(Halve(), stored[:4], key=KEY)
    with pytest.raises(ValueError, match="the purifier made uint8 images; it must make floating-point ones"):
        purify(lambda keys, images: (255 * images).astype(jnp.uint8), stored[:4], key=KEY)
    for index in (np.array([0, 1, 2, 2**32]), np.array([-1, 0, 1, 2]), np.arange(4) / 2):
        with pytest.raises(ValueError, match="index holds other values than whole numbers from 0 to"):
            inspect.unwrap(purify)(Identity(), stored[:4], key=KEY, index=index)


def test_images_of_another_type_are_refused_in_one_line(stored, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    for images in (stored[:4] / 255, stored[0]):
        with pytest.raises(ValueError, match=r"images are \w+ of shape .*; expected uint8 \[N, H, W, C\]"):
            purify(Identity(), images, key=KEY)


def test_an_image_that_is_lost_is_an_error(energies, stored):
    purifier = Langevin(jax.tree.map(lambda leaf: leaf * jnp.inf, energies[0]), 0.02, 1e-3, 1)
    with pytest.raises(ValueError, match="image 50 became NaN or infinite"):
        purify(purifier, stored[50:54], key=KEY, index=np.arange(50, 54))
