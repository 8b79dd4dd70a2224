"""What `from_torch` promises holds for each published network: from a file, and refusing what does not fit."""

from flax import nnx
import jax
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
    states = [nnx.as_pure(nnx.state(from_torch(name, source))) for source in (str(path), path, arrays)]
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


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
