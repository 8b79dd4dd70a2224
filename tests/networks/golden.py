"""The recipe of the golden numbers: weights and inputs from NumPy's `RandomState`, in PyTorch's order and layout."""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "puregen.json").read_text())
PARAMETERS = {
    "conv_energy": GOLDEN["EBM_nf32"],
    "sngan_energy": GOLDEN["EBMSNGAN32_nf128"],
    "unet2d": GOLDEN["UNet_S"],
    "resnet18": GOLDEN["clf_ResNet18"],
    "resnet34": GOLDEN["clf_ResNet34"],
    "mobilenet_v2": GOLDEN["clf_MobileNetV2"],
    "densenet121": GOLDEN["clf_DenseNet121"],
    "hlb_s": GOLDEN["clf_HLB_S"],
    "hlb_m": GOLDEN["clf_HLB_M"],
}


def tensors(name, shapes=None):
    """The recipe's weights under their PyTorch names; `shapes` replaces the shape of single tensors."""
    return dict(_kept_tensors(name, tuple((shapes or {}).items())))


def new_tensors(name, shapes):
    """The same, not kept in memory; `shapes` are pairs of a tensor and its shape."""
    random = np.random.RandomState(0)
    arrays, listed = {}, PARAMETERS[name]["params_in_order"]
    for tensor, shape in listed:
        shape = dict(shapes).get(tensor, shape)
        array = random.standard_normal(shape)
        if len(shape) >= 2:
            array = array / np.sqrt(np.prod(shape[1:]))
        elif tensor.endswith(".weight"):
            array = 1 + 0.1 * array
        else:
            array = 0.1 * array
        arrays[tensor] = array.astype(np.float32)
    if name not in ("conv_energy", "sngan_energy", "unet2d"):
        for tensor, shape in listed:
            # A one-dimensional weight belongs to a batch normalisation: its running statistics are 0 and 1.
            if len(shape) == 1 and tensor.endswith(".weight"):
                layer = tensor.removesuffix(".weight")
                arrays[f"{layer}.running_mean"] = np.zeros(shape, np.float32)
                arrays[f"{layer}.running_var"] = np.ones(shape, np.float32)
                arrays[f"{layer}.num_batches_tracked"] = np.array(7)
    return arrays


_kept_tensors = functools.cache(new_tensors)


def signed_images(seed=7, shape=(4, 3, 32, 32)):
    """Uniform images in [-1, 1], drawn in NCHW, returned in NHWC."""
    images = np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def summary(images):
    """First five and last three numbers in NCHW order, and three moments."""
    flat = np.asarray(images, np.float64).transpose(0, 3, 1, 2).ravel()
    return {
        "mean": flat.mean(),
        "std": flat.std(),
        "abs_mean": np.abs(flat).mean(),
        "first5": flat[:5],
        "last3": flat[-3:],
    }
