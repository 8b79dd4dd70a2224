"""Training an energy, and purifying a data set from file to file."""

from pathlib import Path
import tempfile

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.bench import peers
from experiments.bench.langevin import STEP_SIZE, TEMPERATURE, TorchChain, random_images, sample
from experiments.bench.timing import Contender, Work
from jaxpurify import loop
from jaxpurify.data.npz import write_npz
from jaxpurify.data.sources import load_source
from jaxpurify.generate.energy import EnergyRecipe, EnergyState, EnergyStep, energy_optimizer, start_bank
from jaxpurify.networks import ConvEnergy, freeze
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.langevin import Langevin
from jaxpurify.sharding import batch_mesh


def energy_training(quick: bool) -> Work:
    """Updates a second of the convolutional energy with 32 features: chains of 20 steps, batch 64."""
    recipe = EnergyRecipe(batch_size=64, langevin_steps=2 if quick else 20, bank_size=1000)
    network = ConvEnergy(32, rngs=nnx.Rngs(0))
    images = (random_images(1024) * 255).astype(np.uint8)
    batch = random_images(recipe.batch_size)

    def build(variant: str) -> Contender:
        train = TorchEnergyTraining(peers.copy_weights(network, peers.ConvEnergy(32)), variant, images, recipe)
        start = peers.to_torch(batch, variant != "idiomatic")
        return Contender(train, lambda: train.sample(start))

    graphdef, params = nnx.split(network)
    optimizer = energy_optimizer(recipe)
    step = EnergyStep(graphdef, optimizer, recipe, None, batch_mesh(recipe.batch_size))
    params, zero = jax.tree.map(jnp.copy, nnx.as_pure(params)), jnp.zeros((), jnp.int32)
    bank = start_bank(jax.random.key(1), images, recipe)
    training = _EnergyTraining(step, EnergyState(params, optimizer.init(params), bank, zero, jnp.copy(zero)), images)
    frozen = freeze(network)
    ours = Contender(training, lambda: (*sample(frozen, jnp.asarray(batch)), _stem_gradient(network, batch)))
    note = "ours also measures the length of the gradient at the chains' ends, for its health check"
    return Work(1, "updates/s", ours, peers.variants(build), note)


class _EnergyTraining:
    """Our update, called as `jaxpurify.generate.run` calls it: the state is donated, so it is carried along."""

    def __init__(self, step: EnergyStep, state: EnergyState, images: np.ndarray):
        self.step, self.state, self.images = step, state, jax.device_put(images)
        self.key, self.taken = jax.random.key(2), 0
        self.order = np.random.default_rng(1).permutation(len(images)).astype(np.int32)

    def __call__(self):
        size = self.step.recipe.batch_size
        start = self.taken * size % len(self.order)
        key = jax.random.fold_in(self.key, np.uint32(self.taken))
        rows = self.order[start : start + size]
        self.state, metrics = loop.call(self.step, self.state, key, rows, self.images)
        self.taken += 1
        return self.state, metrics


def _stem_gradient(network: nnx.Module, images: np.ndarray) -> np.ndarray:
    graphdef, params = nnx.split(network)
    gradient = jax.grad(lambda params: nnx.merge(graphdef, params)(jnp.asarray(images)).mean())(nnx.as_pure(params))
    return np.asarray(gradient["layers"][0]["kernel"])


class TorchEnergyTraining:
    """The update of `jaxpurify.generate.energy` as a PyTorch user writes it."""

    def __init__(self, energy: torch.nn.Module, variant: str, images: np.ndarray, recipe: EnergyRecipe):
        self.chain, self.recipe, self.variant = TorchChain(energy, variant), recipe, variant
        self.images = peers.to_torch(images, variant != "idiomatic")
        self.bank = self.images[: recipe.bank_size].float() / 255
        self.energy = peers.compiled(energy, variant)
        self.stem = energy.get_parameter("layers.0.weight")
        fused = None if variant == "idiomatic" else True
        self.optimizer = torch.optim.Adam(energy.parameters(), lr=recipe.learning_rate, fused=fused)

    def __call__(self) -> float:
        recipe, bank = self.recipe, self.bank
        rows = torch.randperm(len(self.images))[: recipe.batch_size]
        slots = torch.randperm(len(bank))[: recipe.batch_size]
        positive = self._noised(self.images[rows].float() / 255)
        self.chain.freeze(self.variant != "idiomatic")
        negative = self.chain(bank[slots], recipe.langevin_steps).detach()
        self.chain.freeze(False)
        gap = self.energy(positive).mean() - self.energy(negative).mean()
        self.optimizer.zero_grad()
        (gap / recipe.temperature).backward()
        self.optimizer.step()
        renewed = torch.rand(len(rows), 1, 1, 1) < recipe.rejuvenation
        bank[slots] = torch.where(renewed, self._noised(positive), negative)
        return gap.item()

    def _noised(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.recipe.data_noise * torch.randn_like(images)

    def sample(self, images: torch.Tensor) -> tuple[np.ndarray, ...]:
        """As `langevin.sample`, and the gradient of the mean energy for the first kernel [h, w, I, O]."""
        stem = self.stem
        gradient = torch.autograd.grad(self.chain.energy(images).mean(), stem)[0]
        return *self.chain.sample(images), gradient.permute(2, 3, 1, 0).contiguous().numpy()


def end_to_end(quick: bool) -> Work:
    """Images a second from an .npz file through 20 Langevin steps to another, 1,000 CIFAR-10 images.

    Raises:
      ValueError: CIFAR-10 is not at hand as a TFDS data set.
    """
    count, steps, batch = (128, 2, 128) if quick else (1000, 20, 128)
    stored = load_source(f"tfds:cifar10/train[:{count}]")
    network = ConvEnergy(32, rngs=nnx.Rngs(0))
    frozen = freeze(network)
    purifier = Langevin(frozen, STEP_SIZE, TEMPERATURE, steps)
    folder = tempfile.TemporaryDirectory()  # removed when the functions below are
    source = f"{folder.name}/stored.npz"
    np.savez(source, images=stored.images, labels=stored.labels)

    def call() -> None:
        dataset = load_source(f"npz:{source}")
        purified = purify(purifier, dataset.images, key=jax.random.key(0), batch_size=batch)
        write_npz(dataset.replace_images(purified), Path(folder.name, "ours.npz"), force=True)

    def build(variant: str) -> Contender:
        chain = TorchChain(peers.copy_weights(network, peers.ConvEnergy(32)), variant)
        chain.freeze(variant != "idiomatic")

        def purify_file() -> None:
            with np.load(source) as file:
                images, labels = file["images"], file["labels"]
            purified = []
            for start in range(0, len(images), batch):
                part = peers.to_torch(images[start : start + batch], variant != "idiomatic").float() / 255
                levels = (chain(part, steps).clamp(0, 1) * 255).round().to(torch.uint8)
                purified.append(peers.to_numpy(levels))
            np.savez_compressed(f"{folder.name}/peer.npz", images=np.concatenate(purified), labels=labels)

        return Contender(purify_file, lambda: chain.sample(peers.to_torch(first, variant != "idiomatic")))

    first = random_images(batch)
    ours = Contender(call, lambda: sample(frozen, jnp.asarray(first)))
    return Work(count, "images/s", ours, peers.variants(build))
