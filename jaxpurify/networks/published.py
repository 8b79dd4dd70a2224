"""What the published PyTorch networks look like: how to build ours to fit, and what each tensor is called.

A `Published` pairs a constructor, which reads widths off the tensors' shapes, with the map from the dotted path
of one of our arrays to the published name of the layer.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import re
from typing import Any

from flax import nnx

from jaxpurify.networks.densenet import DenseNet
from jaxpurify.networks.energy import ConvEnergy, ResidualEnergy
from jaxpurify.networks.hlb import hlb_m, hlb_s
from jaxpurify.networks.layers import CIFAR10_MEAN, CIFAR10_STD
from jaxpurify.networks.mobilenet import MobileNetV2
from jaxpurify.networks.resnet import resnet18, resnet34
from jaxpurify.networks.unet import UNet
from jaxpurify.struct import is_count

Shapes = Mapping[str, tuple[int, ...]]
Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Published:
    """One published network.

    Attributes:
      build: tensor shapes and the caller's options to our network; widths that an absent tensor would tell are any.
      layer: dotted path of a layer of ours to its published name.
      head: the linear layer that follows a flattened map, whose input order differs in NHWC.
    """

    build: Callable[[Shapes, Options], nnx.Module]
    layer: Callable[[str], str]
    head: str | None = None


def substitutions(*rules: tuple[str, Any]) -> Callable[[str], str]:
    """Applies regular expressions in order, each to what the one before left."""

    def layer(path: str) -> str:
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        return path

    return layer


def shifted(pattern: str, name: str, by: int, times: int = 1) -> tuple[str, Callable[[re.Match], str]]:
    """A rule that replaces `pattern`, whose one group is a number n, by `name` with `times * n + by` in it."""
    return pattern, lambda match: name.format(times * int(match[1]) + by)


# For tensors that are absent: the network is built with some widths, so that all that is missing can be named.
_STAND_IN = {4: (64, 3, 3, 3), 2: (10, 512)}


def _sizes(shapes: Shapes, tensor: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that tells widths; ValueError with another number of axes."""
    shape = shapes.get(tensor, _STAND_IN[axes])
    if len(shape) != axes:
        raise ValueError(f"tensor {tensor} has shape {shape}; expected {axes} axes")
    return shape


def _classifier_options(shapes: Shapes, options: Options, stem: str, head: str) -> Options:
    inferred: Options = {"classes": _sizes(shapes, head, 2)[0], "channels": _sizes(shapes, stem, 4)[1]}
    if inferred["channels"] == 3:
        inferred |= {"mean": CIFAR10_MEAN, "std": CIFAR10_STD}
    return inferred | options


def _conv_energy(shapes: Shapes, options: Options) -> nnx.Module:
    features, channels = _sizes(shapes, "f.0.weight", 4)[:2]
    # A convolution and a ReLU each but for the head, which has no ReLU. Higher numbers than there are tensors are none.
    last = max((int(match[1]) for name in shapes if (match := re.fullmatch(r"f\.(\d+)\.weight", name))), default=0)
    # Only the head has one output; where it is absent, counting it makes it a missing tensor.
    convolutions = min(last // 2 + 1, len(shapes)) + (_sizes(shapes, f"f.{last}.weight", 4)[0] != 1)
    # A 3 × 3 layer, the halvings, and the head; a map of 4 × 4 is left at the end.
    inferred: Options = {"features": features, "channels": channels, "size": 4 << max(convolutions - 2, 0)}
    return ConvEnergy(**inferred | options)


def _residual_energy(shapes: Shapes, options: Options) -> nnx.Module:
    features, channels = _sizes(shapes, "block1.c1.weight", 4)[:2]
    size = options.get("patch_size", 1)
    tile = size**2 if is_count(size, 1) else 0
    if not tile or channels % tile:
        raise ValueError(f"patch_size is {options['patch_size']}; the first layer has {channels} channels")
    inferred: Options = {"features": features, "channels": channels // tile}
    return ResidualEnergy(**inferred | options)


def _resnet(constructor: Callable[..., nnx.Module]) -> Callable[[Shapes, Options], nnx.Module]:
    def build(shapes: Shapes, options: Options) -> nnx.Module:
        inferred: Options = {"size": 32 * max(math.isqrt(_sizes(shapes, "linear.weight", 2)[1] // 512), 1)}
        return constructor(**inferred | _classifier_options(shapes, options, "conv1.weight", "linear.weight"))

    return build


def _hlb(constructor: Callable[..., nnx.Module]) -> Callable[[Shapes, Options], nnx.Module]:
    return lambda shapes, options: constructor(**_classifier_options(shapes, options, "0.weight", "8.weight"))


def _mobilenet(shapes: Shapes, options: Options) -> nnx.Module:
    return MobileNetV2(**_classifier_options(shapes, options, "conv1.weight", "linear.weight"))


def _densenet(shapes: Shapes, options: Options) -> nnx.Module:
    inferred: Options = {"growth": _sizes(shapes, "conv1.weight", 4)[0] // 2}
    return DenseNet(**inferred | _classifier_options(shapes, options, "conv1.weight", "linear.weight"))


_UNET_DEFAULTS = {
    "act_fn": "silu",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}


def _unet(shapes: Shapes, options: Options) -> nnx.Module:
    options = dict(options)
    config = dict(options.pop("config", None) or {})
    for field, expected in _UNET_DEFAULTS.items():
        if config.get(field, expected) != expected:
            raise ValueError(f"{field} is {config[field]!r} in the config; only {expected!r} is supported")
    numbers = [int(match[1]) for name in shapes if (match := re.match(r"down_blocks\.(\d+)\.", name))]
    if not numbers:
        raise ValueError("there is no tensor down_blocks.0.resnets.0.conv1.weight nor any other of down_blocks")
    levels = range(1 + min(max(numbers), len(shapes)))
    attends = [any(name.startswith(f"down_blocks.{level}.attentions.") for name in shapes) for level in levels]
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", name))]
    inferred: Options = {
        "block_channels": tuple(_unet_width(shapes, f"down_blocks.{level}.resnets.0") for level in levels),
        "layers_per_block": 1 + max(blocks, default=0),
        "attention_levels": tuple(level for level in levels if attends[level]),
        "channels": _sizes(shapes, "conv_in.weight", 4)[1],
    }
    if config:
        inferred |= _read_unet_config(config, inferred)
    return UNet(**inferred | options)


def _unet_width(shapes: Shapes, block: str) -> int:
    """Channels after a residual block; either of its convolutions tells them."""
    known = [tensor for tensor in (f"{block}.conv1.weight", f"{block}.conv2.weight") if tensor in shapes]
    return _sizes(shapes, known[0] if known else f"{block}.conv1.weight", 4)[0]


def _check_unet_config(config: Options) -> None:
    """Raises ValueError for numbers and lists that are none."""
    for field in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim"):
        value = config.get(field, 1)
        if not (is_count(value, 1) or (value is None and field == "attention_head_dim")):
            raise ValueError(f"{field} is {value!r} in the config; it must be a whole number of at least 1")
    widths = config.get("block_out_channels", [1])
    if not (isinstance(widths, list | tuple) and widths and all(is_count(width, 1) for width in widths)):
        raise ValueError(f"block_out_channels is {widths!r} in the config; it must be a list of whole numbers")
    for field in ("down_block_types", "up_block_types"):
        names = config.get(field, [])
        if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"{field} is {names!r} in the config; it must be a list of names")


def _read_unet_config(config: Options, inferred: Options) -> Options:
    """The fields of a published config.json that our UNet has, checked to be a network of its kind."""
    _check_unet_config(config)
    kinds = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}
    for field in ("down_block_types", "up_block_types"):
        for kind in config.get(field, ()):
            if kind not in kinds:
                raise ValueError(f"{field} has {kind!r}; supported are {', '.join(kinds)}")
    down = [kinds[kind] for kind in config.get("down_block_types", ())]
    up = [kinds[kind] for kind in config.get("up_block_types", ())]
    if down and up and down != up[::-1]:
        raise ValueError("up_block_types do not mirror down_block_types; only mirrored ones are supported")
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise ValueError(
            f"in_channels={config.get('in_channels', 3)}, out_channels={config.get('out_channels', 3)}; "
            "only equal ones are supported"
        )
    head_channels = config.get("attention_head_dim", 8)
    return {
        "block_channels": tuple(config.get("block_out_channels", inferred["block_channels"])),
        "layers_per_block": config.get("layers_per_block", inferred["layers_per_block"]),
        "attention_levels": tuple(level for level, attends in enumerate(down) if attends)
        if down
        else inferred["attention_levels"],
        "channels": config.get("in_channels", inferred["channels"]),
        # None means one head over all channels.
        "head_channels": max(inferred["block_channels"]) if head_channels is None else head_channels,
        "groups": config.get("norm_num_groups", 32),
    }


_RESNET_LAYER = substitutions(
    shifted(r"^stages\.(\d+)", "layer{}", 1),
    (r"\bshortcut$", "shortcut.0"),
    (r"\bshortcut_norm$", "shortcut.1"),
    (r"\bnorm(\d)$", r"bn\1"),
)
_HLB_LAYER = substitutions(
    (r"^whiten$", "0"), (r"^whiten_norm$", "1"), shifted(r"^groups\.(\d+)", "{}", 3), (r"^linear$", "8")
)

PUBLISHED: dict[str, Published] = {
    "conv_energy": Published(_conv_energy, substitutions(shifted(r"^layers\.(\d+)", "f.{}", 0, times=2))),
    "sngan_energy": Published(
        _residual_energy,
        substitutions(
            (r"^stem", "block1"),
            shifted(r"^blocks\.(\d+)", "block{}", 2),
            (r"conv(\d)$", r"c\1"),
            (r"shortcut$", "c_sc"),
            (r"^head$", "l5"),
        ),
    ),
    "unet2d": Published(
        _unet,
        substitutions(
            (r"^time(\d)$", r"time_embedding.linear_\1"),
            (r"^norm_out$", "conv_norm_out"),
            (r"^middle\.attention\b", "middle.attentions.0"),
            (r"^middle\.", "mid_block."),
            (r"^down\.(\d+)\.resample$", r"down_blocks.\1.downsamplers.0.conv"),
            (r"^up\.(\d+)\.resample$", r"up_blocks.\1.upsamplers.0.conv"),
            (r"^(down|up)\.", r"\1_blocks."),
            (r"\bblocks\.(\d+)\.(?=[a-z])", r"resnets.\1."),
            (r"\btime$", "time_emb_proj"),
            (r"\bshortcut$", "conv_shortcut"),
            (r"\b(attentions\.\d+)\.norm$", r"\1.group_norm"),
            (r"\b(attentions\.\d+)\.(query|key|value)$", lambda match: f"{match[1]}.to_{match[2][0]}"),
            (r"\b(attentions\.\d+)\.output$", r"\1.to_out.0"),
        ),
    ),
    "resnet18": Published(_resnet(resnet18), _RESNET_LAYER, head="linear"),
    "resnet34": Published(_resnet(resnet34), _RESNET_LAYER, head="linear"),
    "mobilenet_v2": Published(
        _mobilenet,
        substitutions(
            (r"^blocks", "layers"),
            (r"\bshortcut$", "shortcut.0"),
            (r"\bshortcut_norm$", "shortcut.1"),
            (r"\bnorm(\d)$", r"bn\1"),
        ),
    ),
    "densenet121": Published(
        _densenet,
        substitutions(
            shifted(r"^blocks\.(\d+)", "dense{}", 1),
            shifted(r"^transitions\.(\d+)", "trans{}", 1),
            (r"^conv$", "conv1"),
            (r"\bnorm(\d?)$", r"bn\1"),
        ),
    ),
    "hlb_s": Published(_hlb(hlb_s), _HLB_LAYER),
    "hlb_m": Published(_hlb(hlb_m), _HLB_LAYER),
}
