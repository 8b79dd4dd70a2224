"""Every network by name: the constructors behind `jaxpurify list` and the command line."""

from collections.abc import Callable
import functools

from flax import nnx

from jaxpurify.networks.densenet import densenet121
from jaxpurify.networks.energy import ConvEnergy, ResidualEnergy
from jaxpurify.networks.hlb import hlb_m, hlb_s
from jaxpurify.networks.mobilenet import MobileNetV2
from jaxpurify.networks.resnet import resnet18, resnet34
from jaxpurify.networks.resnet9 import ResNet9
from jaxpurify.networks.unet import UNET_SIZES, UNet

# All take `channels=` and `rngs=`; classifiers also `classes=`, `mean=`, `std=`; see each constructor.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "conv_energy": ConvEnergy,
    "residual_energy": ResidualEnergy,
    "unet": UNet,
    "unet_s": functools.partial(UNet, UNET_SIZES["S"]),
    "unet_m": functools.partial(UNet, UNET_SIZES["M"]),
    "unet_l": functools.partial(UNet, UNET_SIZES["L"]),
    "resnet9": ResNet9,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "mobilenet_v2": MobileNetV2,
    "densenet121": densenet121,
    "hlb_s": hlb_s,
    "hlb_m": hlb_m,
}
