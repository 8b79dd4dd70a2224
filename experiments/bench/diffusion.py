"""Noising and denoising: `jaxpurify.purify.diffusion.Diffusion` beside the UNet of diffusers in a PyTorch loop."""

from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DModel
import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench import peers
from experiments.bench.langevin import random_images
from experiments.bench.timing import Contender, Work
from jaxpurify.networks import UNET_SIZES, freeze, from_torch
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.random import image_keys
from jaxpurify.sharding import batch_mesh, replicate, shard


def tiny(quick: bool) -> Work:
    """Network calls an image and second of ancestral denoising with a tiny UNet, batch 32."""
    return _denoising(_published((32, 64, 64), 1, (2,)), 32, 75, 2 if quick else 10)


def size_s(quick: bool) -> Work:
    """Network calls an image and second of ancestral denoising with UNet S (7,126,275 parameters), batch 32.

    `quick` has two levels with one block each.
    """
    published = _published(UNET_SIZES["S"][1:3], 1, (1,)) if quick else unet_s()
    return _denoising(published, 32, 75, 1 if quick else 5)


def unet_s() -> UNet2DModel:
    """The network of `size_s`."""
    return _published(UNET_SIZES["S"], 2, (4,))


def one_shot(quick: bool) -> Work:
    """Images a second denoised by one call of a network with 53,005,987 parameters, batch 32.

    The noise is that of σ = 0.5 in units of [0, 1], timestep 260 of the linear schedule, and the call's estimate of
    the clean image is the result (Carlini et al., arXiv:2206.10550). Their network, of improved-diffusion
    (arXiv:2102.09672), has 52,546,438 parameters; this is its shape (128 channels times 1, 2, 2, 2, three blocks a
    level, attention at 16 × 16 and 8 × 8), where 288 channels at the coarsest level stand for the scales of its
    timestep embedding. `quick` has two levels with one block each.
    """
    published = _published((32, 64), 1, (1,)) if quick else one_shot_network()
    return _denoising(published, 32, 260, 1, "images/s")


def one_shot_network() -> UNet2DModel:
    """The network of `one_shot`."""
    return _published((128, 256, 256, 288), 3, (1, 2), head_channels=32)


def _published(
    widths: Sequence[int], layers_per_block: int, attention_levels: Sequence[int], head_channels: int = 8
) -> UNet2DModel:
    """The UNet of diffusers for 32 × 32 images, with random weights."""
    torch.manual_seed(0)
    attends = [level in attention_levels for level in range(len(widths))]
    return UNet2DModel(
        sample_size=32,
        block_out_channels=tuple(widths),
        layers_per_block=layers_per_block,
        attention_head_dim=head_channels,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
    )


def _denoising(published: Any, batch: int, timestep: int, calls: int, unit: str = "image-calls/s") -> Work:
    published.eval()
    noise = freeze(from_torch("unet2d", _arrays(published), config=dict(published.config)))
    mesh = batch_mesh(batch)
    noise = replicate(mesh, noise)
    purifier = replicate(mesh, Diffusion(noise, timestep, calls))
    images = random_images(batch)
    times = np.arange(batch, dtype=np.int32)

    def build(variant: str) -> Contender:
        model: Any = UNet2DModel.from_config(published.config)
        model.eval()
        model.load_state_dict(published.state_dict())
        denoise = TorchDenoising(model, variant, purifier.coefficients())
        start = peers.to_torch(images, variant != "idiomatic")
        steps = torch.from_numpy(times)
        return Contender(lambda: denoise(start), lambda: (peers.to_numpy(denoise.predict(start, steps)),))

    keys, start = shard(mesh, (image_keys(jax.random.key(0), jnp.arange(batch)), jnp.asarray(images)))
    ours = Contender(lambda: purifier(keys, start), lambda: (np.asarray(jax.jit(_apply)(noise, start, times)),))
    return Work(batch * calls, unit, ours, peers.variants(build))


def _apply(function, *operands):
    return function(*operands)


def _arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


class TorchDenoising:
    """Noising and ancestral denoising with the network of diffusers and the coefficients of our schedule."""

    def __init__(self, model: torch.nn.Module, variant: str, coefficients: np.ndarray):
        self.network = peers.compiled(peers.arranged(model, variant), variant)
        self.mode = torch.no_grad if variant == "idiomatic" else torch.inference_mode
        self.rows = [tuple(map(float, row)) for row in coefficients]

    def predict(self, images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        with self.mode():
            return self.network(images, timesteps).sample

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with self.mode():
            _, signal, spread, *_ = self.rows[0]
            noisy = signal * (2 * images - 1) + spread * torch.randn_like(images)
            for level, signal, spread, clean_weight, noisy_weight, deviation in self.rows:
                predicted = self.network(noisy, torch.full((len(noisy),), int(level))).sample
                clean = ((noisy - spread * predicted) / signal).clamp(-1, 1)
                noisy = clean_weight * clean + noisy_weight * noisy + deviation * torch.randn_like(noisy)
            return (noisy + 1) / 2
