"""Values of the published networks with known weights, recorded from PyTorch in float64."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.networks import freeze, from_torch
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.convert import _tensor_name
from jaxpurify.networks.published import PUBLISHED
from tests.networks.golden import GOLDEN, PARAMETERS, new_tensors, signed_images, summary, tensors

# One small batch a program: compiling without LLVM's optimisation saves more than it costs.
run = jax.jit(lambda model, *inputs: model(*inputs), compiler_options={"xla_backend_optimization_level": 0})


@jax.jit
def energy_and_gradient(energy, images):
    return jax.value_and_grad(lambda images: energy(images).sum())(images)[1], energy(images)


@pytest.mark.parametrize("name", ["conv_energy", "sngan_energy"])
def test_energies_and_their_gradients(name):
    golden = PARAMETERS[name]
    energy = freeze(from_torch(name, tensors(name)))
    gradient, energies = energy_and_gradient(energy, (signed_images() + 1) / 2)
    np.testing.assert_allclose(energies, golden["energy_f64"], atol=2e-6)
    # The network doubles its input, so its gradient is twice the published one.
    published = gradient / 2
    norms = jnp.sqrt(jnp.square(published).sum((1, 2, 3)))
    # One of a million units within rounding of zero may fall on the other side of its ReLU: 1e-4 of a norm.
    np.testing.assert_allclose(norms, golden["grad_norm_f64"], rtol=3e-4)
    np.testing.assert_allclose(np.median(norms / np.array(golden["grad_norm_f64"])), 1, rtol=1e-5)
    for statistic, value in summary(published).items():
        np.testing.assert_allclose(value, golden["grad"][statistic], atol=1e-7)


def test_residual_energy_serves_larger_images():
    energy = freeze(from_torch("sngan_energy", tensors("sngan_energy")))
    images = (signed_images(8, (2, 3, 64, 64)) + 1) / 2
    np.testing.assert_allclose(run(energy, images), PARAMETERS["sngan_energy"]["energy64_f64"], atol=2e-6)


def test_unet_s_predicts_the_recorded_noise():
    noise = freeze(from_torch("unet2d", tensors("unet2d")))
    output = run(noise, signed_images()[:2], jnp.array([74, 3]))
    golden = GOLDEN["UNet_S"]["out_t74_t3_f64"]
    for statistic, value in summary(output).items():
        np.testing.assert_allclose(value, golden[statistic], atol=5e-6, err_msg=statistic)


def test_unet_l_predicts_the_recorded_noise():
    # Tensors in the order of the small network, which has the same names.
    _, state = nnx.split(nnx.eval_shape(lambda: NETWORKS["unet_l"](channels=3, rngs=nnx.Rngs(0))))
    layouts = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    shapes = {
        _tensor_name(path, PUBLISHED["unet2d"]): tuple(leaf.shape[axis] for axis in layouts[leaf.ndim])
        for path, leaf in nnx.to_flat_state(state)
    }
    golden = GOLDEN["UNet_L"]
    assert sum(np.prod(shape) for shape in shapes.values()) == golden["n_params"]
    noise = freeze(from_torch("unet2d", new_tensors("unet2d", tuple(shapes.items()))))
    for statistic, value in summary(run(noise, signed_images()[:2], jnp.array([74, 3]))).items():
        np.testing.assert_allclose(value, golden["out_t74_t3_f32"][statistic], atol=5e-6, err_msg=statistic)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v2", "densenet121", "hlb_s", "hlb_m"])
def test_logits(name):
    model = freeze(from_torch(name, tensors(name), mean=0.5, std=0.5))
    logits = run(model, (signed_images()[:1] + 1) / 2)
    np.testing.assert_allclose(logits[0], PARAMETERS[name]["logits_x0_f64"], atol=1e-5)


def test_resnet34_flattens_larger_maps_in_the_published_order():
    shapes = {"linear.weight": (200, 2048), "linear.bias": (200,)}
    model = freeze(from_torch("resnet34", tensors("resnet34", shapes), mean=0.5, std=0.5))
    logits = run(model, (signed_images(8, (2, 3, 64, 64))[:1] + 1) / 2)
    assert logits.shape == (1, 200)
    np.testing.assert_allclose(logits[0, :5], GOLDEN["clf_ResNet34_tiny64"]["logits_x0_first5_f64"], atol=1e-5)
