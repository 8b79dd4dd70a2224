"""The same networks as plain PyTorch modules, named like ours so that weights can be copied by name."""

from collections.abc import Callable
import functools

from flax import nnx
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.bench.timing import Contender

VARIANTS = ("idiomatic", "tuned", "compiled")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


def copy_weights(source: nnx.Module, target: nn.Module) -> nn.Module:
    """Fills `target` with the weights of `source`; raises RuntimeError unless they are the same network."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(source, nnx.Not(nnx.RngState))):
        array = np.array(variable[...])
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        name = ".".join(map(str, (*path[:-1], _LEAVES[str(path[-1])])))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    counters = {name: tensor for name, tensor in target.state_dict().items() if name.endswith("num_batches_tracked")}
    target.load_state_dict(tensors | counters)
    return target


def to_torch(images: np.ndarray, channels_last: bool) -> torch.Tensor:
    """Images [N, H, W, C] as a tensor [N, C, H, W], in memory as the variant wants it."""
    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """A tensor [N, C, H, W] as an array [N, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).contiguous().numpy()


def arranged(model: nn.Module, variant: str) -> nn.Module:
    """The module in the memory format of the variant."""
    if variant != "idiomatic":
        model.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    return model


def variants(build: Callable[[str], Contender]) -> dict[str, Callable[[], Contender]]:
    """For every variant a function that builds it when it is its turn."""
    return {variant: functools.partial(build, variant) for variant in VARIANTS}


def compiled(function, variant: str):
    """`torch.compile` for the compiled variant, one program for each shape; else the function itself."""
    return torch.compile(function, dynamic=False) if variant == "compiled" else function


class ConvEnergy(nn.Module):
    """`jaxpurify.networks.ConvEnergy` for 32 × 32 images."""

    def __init__(self, features: int = 32, channels: int = 3):
        super().__init__()
        layers = [nn.Conv2d(channels, features, 3, padding=1)]
        layers += [nn.Conv2d(features << n, features << (n + 1), 4, stride=2, padding=1) for n in range(3)]
        layers.append(nn.Conv2d(features << 3, 1, 4))
        self.layers = nn.ModuleList(layers)

    def forward(self, images):
        images = 2 * images - 1
        for layer in self.layers[:-1]:
            images = functional.leaky_relu(layer(images), 0.05)
        return self.layers[-1](images).flatten()


class ResidualEnergy(nn.Module):
    """`jaxpurify.networks.ResidualEnergy`."""

    def __init__(self, features: int = 128, channels: int = 3):
        super().__init__()
        self.stem = _EnergyStem(channels, features)
        self.blocks = nn.ModuleList([_EnergyBlock(features, halve) for halve in (True, False, False)])
        self.head = nn.Linear(features, 1, bias=False)

    def forward(self, images):
        images = self.stem(2 * images - 1)
        for block in self.blocks:
            images = block(images)
        return self.head(functional.relu(images).mean((2, 3))).flatten()


class _EnergyStem(nn.Module):
    def __init__(self, channels: int, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, features, 1)

    def forward(self, images):
        residual = functional.avg_pool2d(self.conv2(functional.relu(self.conv1(images))), 2)
        return residual + self.shortcut(functional.avg_pool2d(images, 2))


class _EnergyBlock(nn.Module):
    def __init__(self, features: int, halve: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(features, features, 1) if halve else None

    def forward(self, images):
        residual = self.conv2(functional.relu(self.conv1(functional.relu(images))))
        if self.shortcut is None:
            return residual + images
        return functional.avg_pool2d(residual + self.shortcut(images), 2)


class ResNet9(nn.Module):
    """`jaxpurify.networks.ResNet9`."""

    def __init__(self, width: int = 16, classes: int = 10, channels: int = 3):
        super().__init__()
        self.prepare = _ConvNorm(channels, width)
        self.layer1 = _ConvNorm(width, 2 * width)
        self.residual1 = nn.ModuleList([_ConvNorm(2 * width, 2 * width) for _ in range(2)])
        self.layer2 = _ConvNorm(2 * width, 4 * width)
        self.layer3 = _ConvNorm(4 * width, 8 * width)
        self.residual3 = nn.ModuleList([_ConvNorm(8 * width, 8 * width) for _ in range(2)])
        self.linear = nn.Linear(8 * width, classes, bias=False)

    def forward(self, images):
        images = self.prepare((images - 0.5) / 0.25)
        images = functional.max_pool2d(self.layer1(images), 2)
        images = images + self.residual1[1](self.residual1[0](images))
        images = functional.max_pool2d(self.layer2(images), 2)
        images = functional.max_pool2d(self.layer3(images), 2)
        images = images + self.residual3[1](self.residual3[0](images))
        return 0.125 * self.linear(images.amax((2, 3)))


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images):
        return functional.relu(self.norm(self.conv(images)))


class ResNet18(nn.Module):
    """`jaxpurify.networks.resnet18` for 32 × 32 images."""

    def __init__(self, classes: int = 10, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        inputs, stages = 64, []
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages.append(nn.Sequential(_ResidualBlock(inputs, outputs, stride), _ResidualBlock(outputs, outputs, 1)))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.linear = nn.Linear(512, classes)

    def forward(self, images):
        images = functional.relu(self.norm1(self.conv1((images - 0.5) / 0.25)))
        for stage in self.stages:
            images = stage(images)
        return self.linear(functional.avg_pool2d(images, 4).flatten(1))


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None
        self.shortcut_norm = nn.BatchNorm2d(outputs) if changes else None

    def forward(self, images):
        residual = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(images)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            images = self.shortcut_norm(self.shortcut(images))
        return functional.relu(residual + images)


class HLB(nn.Module):
    """`jaxpurify.networks.hlb_s` for 32 × 32 images."""

    def __init__(self, widths=(64, 256, 256), classes: int = 10, channels: int = 3):
        super().__init__()
        self.whiten = nn.Conv2d(channels, 24, 2, bias=False)
        self.whiten_norm = _fixed_norm(24, 0.7)
        pairs = zip((24, *widths[:-1]), widths, strict=True)
        self.groups = nn.ModuleList([_Group(*pair) for pair in pairs])
        self.linear = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, images):
        images = functional.gelu(self.whiten_norm(self.whiten((images - 0.5) / 0.25)))
        for group in self.groups:
            images = group(images)
        return self.linear(images.amax((2, 3))) / 9


class _Group(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = _fixed_norm(outputs, 0.7)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _fixed_norm(outputs, 0.6)

    def forward(self, images):
        images = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(images), 2)))
        return functional.gelu(self.norm2(self.conv2(images)))


def _fixed_norm(channels: int, decay: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=1 - decay)
    norm.weight.requires_grad_(False)
    return norm
