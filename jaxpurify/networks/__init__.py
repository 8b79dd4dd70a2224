"""Networks as Flax NNX modules, published weights into them (`from_torch`), and the way out (`freeze`)."""

from jaxpurify.networks.catalogue import NETWORKS as NETWORKS
from jaxpurify.networks.convert import from_torch as from_torch
from jaxpurify.networks.densenet import DenseNet as DenseNet
from jaxpurify.networks.densenet import densenet121 as densenet121
from jaxpurify.networks.energy import ConvEnergy as ConvEnergy
from jaxpurify.networks.energy import ResidualEnergy as ResidualEnergy
from jaxpurify.networks.freeze import Frozen as Frozen
from jaxpurify.networks.freeze import freeze as freeze
from jaxpurify.networks.hlb import HLB as HLB
from jaxpurify.networks.hlb import hlb_m as hlb_m
from jaxpurify.networks.hlb import hlb_s as hlb_s
from jaxpurify.networks.layers import CIFAR10_MEAN as CIFAR10_MEAN
from jaxpurify.networks.layers import CIFAR10_STD as CIFAR10_STD
from jaxpurify.networks.layers import parameter_count as parameter_count
from jaxpurify.networks.mobilenet import MobileNetV2 as MobileNetV2
from jaxpurify.networks.resnet import ResNet as ResNet
from jaxpurify.networks.resnet import resnet18 as resnet18
from jaxpurify.networks.resnet import resnet34 as resnet34
from jaxpurify.networks.resnet9 import ResNet9 as ResNet9
from jaxpurify.networks.stored import save_network as save_network
from jaxpurify.networks.unet import UNET_SIZES as UNET_SIZES
from jaxpurify.networks.unet import UNet as UNet
