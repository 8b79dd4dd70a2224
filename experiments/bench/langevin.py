"""Langevin chains on energies: `jaxpurify.purify.langevin.Langevin` beside a PyTorch loop over `autograd.grad`.

In the rows in bfloat16 the networks compute in that type on both sides (`torch.autocast`), while weights, images,
gradients for the images and noise stay float32.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench import peers
from experiments.bench.timing import Contender, Work
from jaxpurify.networks import ConvEnergy, ResidualEnergy, freeze
from jaxpurify.purify.langevin import Langevin
from jaxpurify.random import image_keys
from jaxpurify.sharding import batch_mesh, replicate, shard
from jaxpurify.struct import struct
from jaxpurify.types import Energies, Energy, Images

STEP_SIZE, TEMPERATURE = 0.00625, 1e-4
# Rounding switches units at the kink of a ReLU: in bfloat16 gradients of either side are 6 to 10 % away from float32,
# in float32 those of the residual energy with 128 features 0.03 % (PyTorch) and 0.17 % (ours, in 3 images of 64) from
# float64.
TOLERANCES = {"float32": 3e-3, "bfloat16": 0.15}


@struct
class Bfloat16:
    """An energy that computes in bfloat16 and is float32 to the outside."""

    energy: Energy

    def __call__(self, images: Images) -> Energies:
        return self.energy(images.astype(jnp.bfloat16)).astype(jnp.float32)

    @property
    def pixels_at_once(self) -> int | None:
        return getattr(self.energy, "pixels_at_once", None)


def conv(quick: bool, precision: str = "float32") -> Work:
    """Image-steps a second on the convolutional energy with 32 features, batch 64."""
    return _work(ConvEnergy(32, rngs=nnx.Rngs(0)), lambda: peers.ConvEnergy(32), quick, precision)


def residual(quick: bool, precision: str = "float32") -> Work:
    """Image-steps a second on the residual energy with 32 features, batch 64."""
    return _work(ResidualEnergy(32, rngs=nnx.Rngs(0)), lambda: peers.ResidualEnergy(32), quick, precision)


def residual_wide(quick: bool, precision: str = "float32") -> Work:
    """Image-steps a second on the residual energy with 128 features, batch 64."""
    return _work(ResidualEnergy(128, rngs=nnx.Rngs(0)), lambda: peers.ResidualEnergy(128), quick, precision)


def in_bfloat16(build: Callable[[bool, str], Work]) -> Callable[[bool], Work]:
    """One of the rows above with the networks in bfloat16."""
    return lambda quick: build(quick, "bfloat16")


def _work(
    energy: nnx.Module, peer: Callable[[], torch.nn.Module], quick: bool, precision: str, batch: int = 64
) -> Work:
    steps = 2 if quick else 10
    images = random_images(batch)

    def build(variant: str) -> Contender:
        chain = TorchChain(peers.copy_weights(energy, peer()), variant, precision)
        chain.freeze(variant != "idiomatic")
        start = peers.to_torch(images, variant != "idiomatic")
        return Contender(lambda: chain(start, steps), lambda: chain.sample(start))

    frozen = freeze(energy) if precision == "float32" else Bfloat16(freeze(energy))
    mesh = batch_mesh(batch)
    keys, start = shard(mesh, (image_keys(jax.random.key(0), jnp.arange(batch)), jnp.asarray(images)))
    purifier = replicate(mesh, Langevin(frozen, STEP_SIZE, TEMPERATURE, steps))
    frozen = replicate(mesh, frozen)
    ours = Contender(lambda: purifier(keys, start), lambda: sample(frozen, start))
    tolerance = TOLERANCES[precision]
    return Work(batch * steps, "image-steps/s", ours, peers.variants(build), precision=precision, tolerance=tolerance)


def random_images(count: int) -> np.ndarray:
    """Images [count, 32, 32, 3] of uniform noise in [0, 1)."""
    return np.random.default_rng(0).random((count, 32, 32, 3), np.float32)


def sample(energy: Energy, images: Images) -> tuple[np.ndarray, ...]:
    """The energies of `images`, and their gradient with respect to the images."""
    values, gradient = jax.jit(_values_and_gradient)(energy, images)
    return np.asarray(values), np.asarray(gradient)


def _values_and_gradient(energy, images):
    return energy(images), jax.grad(lambda x: energy(x).sum())(images)


class TorchChain:
    """Langevin steps with an energy; the noise is drawn by PyTorch's own generator.

    Compiled, a step is one program with the gradient and the noise in it: `torch.func.grad`, because compiling the
    energy alone leaves the graph of `torch.autograd.grad` outside and gives a slower step.
    """

    def __init__(self, energy: torch.nn.Module, variant: str, precision: str = "float32"):
        self.network, self.precision = peers.arranged(energy, variant), precision
        whole = torch.func.grad(lambda images: self.energy(images).sum())
        self.gradient = peers.compiled(whole, variant) if variant == "compiled" else self._gradient
        self.step = peers.compiled(
            functools.partial(_step, whole if variant == "compiled" else self._gradient), variant
        )

    def freeze(self, frozen: bool = True) -> None:
        """Whether the weights take part in differentiation."""
        self.network.requires_grad_(not frozen)

    def energy(self, images: torch.Tensor) -> torch.Tensor:
        """Energies in float32, whatever the network computes in; autocast is for the way forward alone."""
        if self.precision == "float32":
            return self.network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            energies = self.network(images)
        return energies.float()

    def __call__(self, images: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            images = self.step(images)
        return images

    def _gradient(self, images: torch.Tensor) -> torch.Tensor:
        images = images.detach().requires_grad_(True)
        return torch.autograd.grad(self.energy(images).sum(), images)[0]

    def sample(self, images: torch.Tensor) -> tuple[np.ndarray, ...]:
        """As the function `sample`."""
        with torch.no_grad():
            values = self.energy(images)
        return values.numpy(), peers.to_numpy(self.gradient(images))


def _step(gradient: Callable, images: torch.Tensor) -> torch.Tensor:
    images = images - (STEP_SIZE**2 / (2 * TEMPERATURE)) * gradient(images)
    return images + STEP_SIZE * torch.randn_like(images)
