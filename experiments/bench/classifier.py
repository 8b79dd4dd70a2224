"""Training steps of classifiers: `jaxpurify.train.classifier.ClassifierStep` through `jaxpurify.loop.scan`.

Ours splits each batch over one JAX device a core, as victims of 32 × 32 images and larger are trained.

Both sides keep uint8 images in memory, gather a batch, convert it to floats, and take one step of SGD with Nesterov
momentum and weight decay on the cross-entropy. Augmentation is left out on both sides.
"""

from collections.abc import Callable

from flax import nnx
import jax
import numpy as np
import torch
from torch.nn import functional

from experiments.bench import peers
from experiments.bench.timing import Contender, Work
from jaxpurify import loop
from jaxpurify.networks import ResNet9, hlb_s, resnet18
from jaxpurify.sharding import BATCH_AXES, data_mesh, replicate, shard
from jaxpurify.train.classifier import ClassifierStep
from jaxpurify.train.schedule import sgd
from jaxpurify.train.state import create_state

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
BATCH, COUNT, COMPARED_STEPS = 128, 1024, 3


def resnet9(quick: bool) -> Work:
    """Images a second in training ResNet-9 of width 16."""
    return _work(ResNet9(16, rngs=nnx.Rngs(0)), lambda: peers.ResNet9(16), 2 if quick else 8)


def resnet18_cifar(quick: bool) -> Work:
    """Images a second in training ResNet-18."""
    return _work(resnet18(rngs=nnx.Rngs(0)), peers.ResNet18, 1 if quick else 2)


def hlb(quick: bool) -> Work:
    """Images a second in training HLB-S."""
    return _work(hlb_s(rngs=nnx.Rngs(0)), peers.HLB, 1 if quick else 4)


def _work(network: nnx.Module, peer: Callable[[], torch.nn.Module], steps: int) -> Work:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, COUNT)
    order = generator.permutation(COUNT).astype(np.int32).reshape(-1, BATCH)

    def build(variant: str) -> Contender:
        train = TorchTraining(peers.copy_weights(network, peer()), variant, images, labels)
        rows = torch.from_numpy(order).long()
        return Contender(lambda: train(rows, steps), lambda: (np.array(train(rows, COMPARED_STEPS)),))

    # The schedule is constant for as long as this is run, as the peer's learning rate is.
    optimizer = sgd("multistep", 10**9, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    graphdef, state = create_state(network, optimizer)
    mesh = data_mesh()
    step = ClassifierStep(graphdef, optimizer, 0.0, "float32", mesh)
    state, key, *data = replicate(mesh, (state, jax.random.key(0), images, labels.astype(np.int32)))
    operands = (shard(mesh, order, None, BATCH_AXES), key, *data, None)

    def train(steps: int):
        return loop.scan(step, state, steps, *operands)

    ours = Contender(lambda: train(steps), lambda: (np.asarray(train(COMPARED_STEPS)[1]["loss"]),))
    return Work(BATCH * steps, "images/s", ours, peers.variants(build))


class TorchTraining:
    """A plain training loop; each call goes on from where the last one ended."""

    def __init__(self, model: torch.nn.Module, variant: str, images: np.ndarray, labels: np.ndarray):
        self.model = peers.arranged(model.train(), variant)
        self.channels_last = variant != "idiomatic"
        self.images = peers.to_torch(images, self.channels_last)
        self.labels = torch.from_numpy(labels)
        self.loss = peers.compiled(self._loss, variant)
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
            fused=None if variant == "idiomatic" else True,
        )

    def _loss(self, batch: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.model(batch), target)

    def __call__(self, order: torch.Tensor, steps: int) -> list[float]:
        losses = []
        for rows in order[:steps]:
            batch = self.images[rows].float() / 255
            if self.channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            self.optimizer.zero_grad()
            loss = self.loss(batch, self.labels[rows])
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses
