"""The published constants of the HLB optimiser, and its updates by hand."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.networks.hlb import HLB
from jaxpurify.train.classifier import Recipe
from jaxpurify.train.hyperlight import HyperlightRecipe, _groups


def test_the_published_constants():
    recipe = HyperlightRecipe()
    assert recipe.kilostep == pytest.approx(8900.9231, abs=1e-4)
    assert recipe.rates == pytest.approx((1.303236e-3, 8.405873e-2), rel=1e-6)
    assert isinstance(recipe, Recipe) and (recipe.epochs, recipe.batch_size) == (15, 128)


def test_equal_recipes_share_an_optimizer():
    """Optimizers are compared by identity: another one would compile the training step again."""
    for other in ({"schedule": "cosine"}, {"nesterov": False}):
        with pytest.raises(ValueError, match=r"a HyperlightRecipe is triangular with Nesterov's$"):
            HyperlightRecipe(**other)
    assert HyperlightRecipe(epochs=2).optimizer(512) is HyperlightRecipe(epochs=2).optimizer(512)
    assert HyperlightRecipe(epochs=2).optimizer(512) is not HyperlightRecipe(epochs=3).optimizer(512)


def test_two_updates_by_hand():
    recipe = HyperlightRecipe(epochs=2, batch_size=10)
    optimizer = recipe.optimizer(50)  # ten steps: the rate rises from 0.2 to 1 over the first two
    params = {"conv": {"kernel": jnp.array(2.0)}, "norm1": {"bias": jnp.array(-1.0)}}
    state = optimizer.init(params)
    weights, momenta = {"conv": 2.0, "norm1": -1.0}, {"conv": 0.0, "norm1": 0.0}
    decay = 0.0157 * 10 / recipe.kilostep
    for step, (gradient, share) in enumerate(((0.3, 0.2), (-0.1, 0.6), (0.2, 1.0))):
        gradients = jax.tree.map(lambda _, gradient=gradient: jnp.array(gradient), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, rate in zip(("conv", "norm1"), recipe.rates, strict=True):
            slope = 10 * gradient + decay / rate * weights[name]
            momenta[name] = 0.87 * momenta[name] + slope
            weights[name] -= share * rate * (slope + 0.87 * momenta[name])
        found = [float(params["conv"]["kernel"]), float(params["norm1"]["bias"])]
        np.testing.assert_allclose(found, [weights["conv"], weights["norm1"]], rtol=1e-5, err_msg=str(step))


def test_normalisations_of_the_network_are_told_apart():
    model = nnx.eval_shape(lambda: HLB(widths=(4, 4, 4), rngs=nnx.Rngs(0)))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    groups = _groups(params)
    assert groups["whiten"]["kernel"] == groups["linear"]["kernel"] == groups["groups"][0]["conv1"]["kernel"] == "other"
    assert groups["groups"][0]["norm1"]["bias"] == groups["groups"][2]["norm2"]["bias"] == "norm"
    # Published parameters are told apart by "norm" in their names, and that of the first one is "1.bias".
    assert groups["whiten_norm"]["bias"] == "other"
