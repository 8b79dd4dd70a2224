"""Gradient matching: the crafting loop of `jaxpurify.attack.gradient_matching` beside double backward in PyTorch.

One step is the loss on the poisons, its gradient for the network's parameters, the cosine distance of that from the
target's gradient, its derivative for the poisons, Adam on the sign and the projection. The network is in evaluation
mode and augmentation is left out on both sides.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from experiments.bench import peers
from experiments.bench.timing import Contender, Work
from jaxpurify.attack.crafting import Crafting, Progress, advance, start
from jaxpurify.attack.matching import Passenger
from jaxpurify.attack.matching_objective import Matching, target_gradients
from jaxpurify.attack.targeted import make_crafting, split_over
from jaxpurify.attack.view import View
from jaxpurify.networks import ResNet9, freeze
from jaxpurify.networks.partition import split_trainable
from jaxpurify.sharding import batch_mesh

EPSILON, LEARNING_RATE, STEPS, TARGET, BASE = 16 / 255, 0.025, 250, 3, 5
POISONS, RESTARTS = 128, 8
# A gradient of a gradient jumps where a ReLU or a maximum switches: PyTorch's own is 1e-3 away from its float64 value.
TOLERANCE = 1e-2


def step(quick: bool) -> Work:
    """Poisons a second in one step of gradient matching on ResNet-9 of width 16, 128 poisons.

    Ours splits the poisons over one JAX device a core, as grids and the command line do with a single restart.
    """
    problem = _Problem(16 if quick else POISONS)
    steps = 1 if quick else 4
    crafting = problem.crafting()
    state = start(crafting, 1)
    split = split_over(batch_mesh(problem.count), problem.objective, crafting, state, apart=True)

    def build(variant: str) -> Contender:
        craft = TorchCrafting(problem, variant, state)
        return Contender(lambda: craft(steps), craft.sample)

    ours = Contender(lambda: advance(*split, steps), lambda: problem.sample(crafting, state, advance(*split, 1)[1]))
    return Work(problem.count * steps, "poisons/s", ours, peers.variants(build), tolerance=TOLERANCE)


def restarts(quick: bool) -> Work:
    """Restarts a second, one step each, of 8 restarts of 128 poisons on ResNet-9 of width 16.

    Ours is one program with all restarts as the attack runs them by default: the devices share them. Its two other
    forms, on one device, are one program that computes them side by side, and one run after the other. PyTorch runs one
    after the other, as published code does.
    """
    problem = _Problem(8 if quick else POISONS)
    number = 2 if quick else RESTARTS
    crafting, together = problem.crafting(), problem.crafting(number)
    state = start(crafting, number)
    singly = [
        Progress(state.delta[place : place + 1], start(crafting, 1).moments, state.count) for place in range(number)
    ]

    def one_by_one() -> list:
        return [advance(problem.objective, crafting, single, 1) for single in singly]

    def build(variant: str) -> Contender:
        craft = TorchCrafting(problem, variant, state)
        return Contender(lambda: craft(1), craft.sample)

    def advanced():
        return advance(problem.objective, crafting, state, 1)

    ours = Contender(advanced, lambda: problem.sample(crafting, state, advanced()[1]))
    forms: dict[str, Callable] = {
        "side by side in one program": lambda: advance(problem.objective, together, state, 1),
        "one by one": one_by_one,
    }
    return Work(number, "restart-steps/s", ours, peers.variants(build), tolerance=TOLERANCE, forms=forms)


class _Problem:
    """A network, random images that become poisons, and a target, as the attack puts them together."""

    def __init__(self, count: int):
        generator = np.random.default_rng(0)
        self.count, self.network = count, ResNet9(16, rngs=nnx.Rngs(0))
        self.images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        self.seen = generator.random((1, 32, 32, 3), np.float32)
        apply, params = split_trainable(freeze(self.network))
        targets = target_gradients((apply,), (params,), jnp.asarray(self.seen), jnp.array([TARGET]))
        self.objective = Matching((apply,), (params,), targets, Passenger(), View())

    def crafting(self, together: int = 0) -> Crafting:
        labels, index = np.full(self.count, BASE), np.arange(self.count)
        return make_crafting(
            self.images, labels, index, jax.random.key(0), EPSILON, LEARNING_RATE, STEPS, True, "sign_adam", together
        )

    def sample(self, crafting: Crafting, state: Progress, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """The objective of every restart [R] among `values` [1, R], and its gradient for the first one's poisons."""
        gradient = jax.jit(_gradient)(self.objective, state.delta[0], crafting)
        return values[0], np.asarray(gradient)


def _gradient(objective, delta, crafting):
    return objective(delta, crafting.key, crafting)[1]


class TorchCrafting:
    """Crafting as published code does it: the gradient of a gradient that was taken with `create_graph=True`.

    Compiled, value and gradient are one program made of two `torch.func.grad`, because `torch.compile` does not
    differentiate a compiled model twice. The optimiser's step stays outside in all variants.
    """

    def __init__(self, problem: _Problem, variant: str, state: Progress):
        channels_last = variant != "idiomatic"
        model = peers.copy_weights(problem.network, peers.ResNet9(16)).eval()
        self.model = peers.arranged(model, variant)
        self.images = peers.to_torch(problem.images, channels_last).float() / 255
        self.labels = torch.full((problem.count,), BASE)
        self.start = [peers.to_torch(np.asarray(delta), channels_last) for delta in state.delta]
        self.parameters = dict(self.model.named_parameters())
        loss = functional.cross_entropy(self.model(peers.to_torch(problem.seen, channels_last)), torch.tensor([TARGET]))
        self.target = torch.autograd.grad(loss, tuple(self.parameters.values()))
        self.fused = None if variant == "idiomatic" else True
        self.value_and_gradient = self._double_backward
        if variant == "compiled":
            self.value_and_gradient = peers.compiled(torch.func.grad_and_value(self._nested), variant)
            self.model.requires_grad_(False)

    def __call__(self, steps: int) -> list[torch.Tensor]:
        return [self._restart(delta, steps) for delta in self.start]

    def _restart(self, delta: torch.Tensor, steps: int) -> torch.Tensor:
        delta = delta.clone()
        optimizer = torch.optim.Adam([delta], lr=LEARNING_RATE, fused=self.fused)
        for _ in range(steps):
            gradient, _ = self.value_and_gradient(delta)
            delta.grad = gradient.sign()
            optimizer.step()
            delta.clamp_(-EPSILON, EPSILON)
            delta.copy_(torch.clamp(self.images + delta, 0, 1) - self.images)
        return delta

    def _double_backward(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        delta = delta.detach().requires_grad_(True)
        loss = functional.cross_entropy(self.model(self.images + delta), self.labels)
        poison = torch.autograd.grad(loss, tuple(self.parameters.values()), create_graph=True)
        value = _distance(poison, self.target)
        return torch.autograd.grad(value, delta)[0], value.detach()

    def _nested(self, delta: torch.Tensor) -> torch.Tensor:
        def loss(parameters):
            logits = torch.func.functional_call(self.model, parameters, (self.images + delta,))
            return functional.cross_entropy(logits, self.labels)

        return _distance(tuple(torch.func.grad(loss)(self.parameters).values()), self.target)

    def sample(self) -> tuple[np.ndarray, ...]:
        """As `_Problem.sample`."""
        gradients, values = zip(*map(self.value_and_gradient, self.start), strict=True)
        return torch.stack(values).detach().numpy(), peers.to_numpy(gradients[0])


def _distance(poison: tuple[torch.Tensor, ...], target: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """1 - cos between two gradients, all tensors together."""
    one, other = (torch.cat([tensor.flatten() for tensor in gradient]) for gradient in (poison, target))
    return 1 - torch.dot(one, other) / (one.norm() * other.norm())
