"""What `from_torch` promises holds for each published network: from a file, and refusing what does not fit."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpurify.networks import from_torch
from jaxpurify.networks.published import PUBLISHED
from tests.networks.golden import PARAMETERS, tensors


def test_every_published_network_has_golden_tensors():
    assert set(PUBLISHED) == set(PARAMETERS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_holds_the_same_network_as_a_dict(name, tmp_path):
    arrays = {tensor: np.ascontiguousarray(array) for tensor, array in tensors(name).items()}
    path = tmp_path / "weights.safetensors"
    save_file(arrays, path)
    sources = (str(path), path, arrays) if name == "hlb_s" else (path, arrays)
    first, *others = (nnx.as_pure(nnx.state(from_torch(name, source))) for source in sources)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize("name", PUBLISHED)
def test_wrong_missing_and_left_over_tensors_are_refused(name):
    arrays = tensors(name)
    listed = PARAMETERS[name]["params_in_order"]
    # A tensor in the middle: the first and last ones tell the widths.
    tensor, shape = listed[len(listed) // 2]
    wrong = arrays | {tensor: np.zeros([size + 1 for size in shape], np.float32)}
    with pytest.raises(ValueError, match="has shape") as error:
        from_torch(name, wrong)
    assert "expected" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="left-over tensors: extra"):
        from_torch(name, arrays | {"extra": np.ones(2, np.float32)})
    missing = {key: array for key, array in arrays.items() if key != tensor}
    with pytest.raises(ValueError, match="missing") as error:
        from_torch(name, missing)
    assert tensor in str(error.value)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("unet2d", "down_blocks.0.resnets.1."),
        ("unet2d", "down_blocks.4.attentions.0.group_norm.weight"),
        ("unet2d", "conv_in."),
        ("unet2d", "down_blocks.0.resnets.0.conv1.weight"),
        ("conv_energy", "f.8."),
        ("conv_energy", "f.4."),
        ("conv_energy", "f.0."),
        ("sngan_energy", "block1.c1."),
        ("resnet18", "linear."),
        ("resnet34", "conv1.weight"),
        ("mobilenet_v2", "linear."),
        ("densenet121", "conv1.weight"),
        ("hlb_s", "0.weight"),
        ("hlb_m", "8.weight"),
    ],
)
def test_absent_tensors_that_tell_the_structure_are_called_missing(name, prefix):
    arrays = tensors(name)
    absent = sorted(tensor for tensor in arrays if tensor.startswith(prefix))
    with pytest.raises(ValueError, match="left-over tensors: none") as error:
        from_torch(name, {tensor: array for tensor, array in arrays.items() if tensor not in absent})
    assert absent and f"missing tensors: {', '.join(absent)};" in str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_that_tell_the_widths_are_refused_by_name(name):
    arrays = tensors(name)
    for tensor in (PARAMETERS[name]["params_in_order"][0][0], PARAMETERS[name]["params_in_order"][-1][0]):
        for wrong in (np.zeros(3, np.float32), np.zeros((), np.float32)):
            if wrong.shape == arrays[tensor].shape:
                continue
            with pytest.raises(ValueError, match="tensor") as error:
                from_torch(name, arrays | {tensor: wrong})
            assert tensor in str(error.value) and "has shape" in str(error.value) and "\n" not in str(error.value)


def test_half_precision_is_read_from_a_file(tmp_path):
    half = {name: np.asarray(array, jnp.bfloat16) for name, array in tensors("hlb_s").items()}
    save_file(half, tmp_path / "half.safetensors")
    found = nnx.state(from_torch("hlb_s", tmp_path / "half.safetensors"))
    wanted = nnx.state(from_torch("hlb_s", {name: array.astype(np.float32) for name, array in half.items()}))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_files_and_options_that_cannot_be_used_are_one_clear_line(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"not weights")
    (tmp_path / "config.json").write_text("{")
    arrays = tensors("unet2d")
    for call, message in (
        (lambda: from_torch("hlb_s", tmp_path / "damaged.safetensors"), "is not a readable .safetensors file"),
        (lambda: from_torch("unet2d", arrays, config=tmp_path / "absent.json"), "is not a readable JSON file"),
        (lambda: from_torch("unet2d", arrays, config=tmp_path / "config.json"), "is not a readable JSON file"),
        (lambda: from_torch("hlb_s", tensors("hlb_s"), colour=3), "colour"),
        (lambda: from_torch("hlb_s", {"0.weight": "text"}), "tensor 0.weight is no array of floating-point numbers"),
        (lambda: from_torch("hlb_s", {"0.weight": np.ones(2, np.int8)}), "0.weight is no array of .* .it is of int8.;"),
        (lambda: from_torch("hlb_s", {"0.weight": np.ones(2, complex)}), "it is of complex128"),
        (lambda: from_torch("hlb_s", {"0.weight": np.array([1.0, np.nan])}), "0.weight has values that are NaN, inf"),
        (lambda: from_torch("hlb_s", {"0.weight": np.array([1e300])}), "NaN, infinite or beyond float32"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
