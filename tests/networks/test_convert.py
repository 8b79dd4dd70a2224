"""`from_torch`: what it infers, and what it refuses."""

import json

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpurify.networks import CIFAR10_MEAN, from_torch
from tests.networks.golden import tensors

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [32, 32, 64, 64, 128, 128],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}


def test_widths_are_inferred():
    shapes = {"f.0.weight": (16, 1, 3, 3), "f.0.bias": (16,), "f.2.weight": (1, 16, 4, 4), "f.2.bias": (1,)}
    energy = from_torch("conv_energy", {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    assert energy.shape == (4, 4, 1)
    assert energy(jnp.full((1, 4, 4, 1), 0.5)) == 256 * 1 + 1


def test_layouts_are_turned_round():
    arrays = tensors("hlb_s")
    model = from_torch("hlb_s", arrays)
    np.testing.assert_array_equal(model.whiten.kernel[1, 0, 2, 5], arrays["0.weight"][5, 2, 1, 0])
    np.testing.assert_array_equal(model.linear.kernel[3, 7], arrays["8.weight"][7, 3])
    np.testing.assert_array_equal(model.groups[2].norm2.bias[...], arrays["5.norm2.bias"])
    assert model.standardise.mean == CIFAR10_MEAN
    assert from_torch("hlb_s", arrays, mean=0.5, std=0.5).standardise.mean == (0.5,) * 3


def test_a_file_is_read(tmp_path):
    arrays = tensors("sngan_energy")
    save_file(arrays, tmp_path / "energy.safetensors")
    energy = from_torch("sngan_energy", tmp_path / "energy.safetensors")
    np.testing.assert_array_equal(energy.head.kernel[:, 0], arrays["l5.weight"][0])


def test_the_prefix_of_parallel_training_is_dropped():
    arrays = {f"module.{name}": array for name, array in tensors("sngan_energy").items()}
    np.testing.assert_array_equal(
        from_torch("sngan_energy", arrays).stem.shortcut.bias[...], arrays["module.block1.c_sc.bias"]
    )


def test_unet_reads_its_config_and_old_attention_names(tmp_path):
    arrays = tensors("unet2d")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"attention_head_dim": None}))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in old.items():
        arrays = {name.replace(f".{new_name}.", f".{old_name}."): array for name, array in arrays.items()}
    model = from_torch("unet2d", arrays, config=tmp_path / "config.json")
    assert model.middle.attention.head_channels == 128
    np.testing.assert_array_equal(
        model.middle.attention.output.kernel[...], arrays["mid_block.attentions.0.proj_attn.weight"].T
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 6}, "CrossAttnDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 6}, "mirror"),
        ({"out_channels": 6}, "^unet2d: in_channels=3, out_channels=6; only equal ones"),
        ({"norm_num_groups": 5}, "groups=5"),
        ({"block_out_channels": None}, "block_out_channels is None in the config; it must be a list of whole numbers"),
        ({"attention_head_dim": "8"}, "attention_head_dim is '8' in the config; it must be a whole number"),
        ({"layers_per_block": 1.5}, r"layers_per_block is 1\.5 in the config; it must be a whole number"),
        ({"up_block_types": [["UpBlock2D"]]}, "up_block_types is .* in the config; it must be a list of names"),
    ],
)
def test_configs_of_other_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_torch("unet2d", tensors("unet2d"), config=CONFIG | change)


def test_an_energy_of_tiles_finds_the_channels_of_its_images():
    arrays = tensors("sngan_energy")
    for name in ("block1.c1.weight", "block1.c_sc.weight"):
        arrays[name] = np.tile(arrays[name], (1, 4, 1, 1))
    energy = from_torch("sngan_energy", arrays, patch_size=2)
    assert energy.patch_size == 2 and energy.stem.conv1.kernel[...].shape == (3, 3, 12, 128)
    assert nnx.eval_shape(energy, jnp.zeros((2, 16, 16, 3))).shape == (2,)
    for size in (0, 5, 1.0, True):
        with pytest.raises(ValueError, match=rf"patch_size is {size}; the first layer has 12 channels$"):
            from_torch("sngan_energy", arrays, patch_size=size)


def test_missing_and_left_over_tensors_are_listed_together():
    arrays = tensors("hlb_s")
    del arrays["3.conv1.weight"], arrays["5.norm2.running_var"]
    arrays |= {"9.scale": np.ones(1), "extra": np.ones(2)}
    with pytest.raises(ValueError) as error:
        from_torch("hlb_s", arrays)
    assert str(error.value) == (
        "hlb_s: missing tensors: 3.conv1.weight, 5.norm2.running_var; left-over tensors: 9.scale, extra"
    )


def test_a_wrong_shape_names_tensor_got_and_expected():
    arrays = tensors("sngan_energy")
    arrays["block3.c2.weight"] = np.zeros((128, 128, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"block3.c2.weight has shape \(128, 128, 1, 1\); expected \(128, 128, 3, 3\)"):
        from_torch("sngan_energy", arrays)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("resnet50", {}, "resnet50.*resnet18"),
        ("resnet18", {}, "empty"),
        ("resnet18", {"other": np.ones(1)}, r"missing tensors: .*linear\.weight.*; left-over tensors: other$"),
        ("conv_energy", {"other": np.ones(1)}, r"missing tensors: .*f\.0\.weight.*; left-over tensors: other$"),
        ("unet2d", {"other": np.ones(1)}, "down_blocks"),
        ("unet2d", {"down_blocks.999999999.resnets.0.conv1.weight": np.ones(1)}, "missing|has shape"),
        ("conv_energy", {"f.999999998.weight": np.ones((1, 2, 3, 3))}, "left-over tensors: f.999999998.weight"),
        ("resnet18", "absent.safetensors", "absent.safetensors"),
        ("hlb_s", tensors("hlb_m"), "3.conv1.weight has shape"),
    ],
)
def test_other_bad_input(name, arrays, message):
    with pytest.raises(ValueError, match=message):
        from_torch(name, arrays)
