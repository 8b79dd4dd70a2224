"""Attacks that are to survive noise meet new noise in every step, restart and draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxpurify.attack.clean_label_backdoor import _cross_entropy as clean_label_losses
from jaxpurify.attack.clean_label_backdoor import _Problem as CleanLabelProblem
from jaxpurify.attack.crafting import Crafting, advance, start
from jaxpurify.attack.feature_steps import _draw_keys
from jaxpurify.attack.narcissus import _objective as narcissus_objective
from jaxpurify.attack.narcissus import _Problem as NarcissusProblem
from jaxpurify.attack.view import View
from jaxpurify.attack.warm_up import class_batch
from jaxpurify.random import image_keys, uniform
from jaxpurify.struct import as_operand, struct
from jaxpurify.types import Images, Keys

KEY = jax.random.key(0)


@struct
class OfTheKey:
    """An objective that is nothing but a number drawn with its key."""

    def __call__(self, delta, key, crafting):
        return jax.random.uniform(key), jnp.zeros_like(delta)


@struct
class Dim:
    """Scales each image by a number of its key."""

    def __call__(self, keys: Keys, images: Images) -> Images:
        return images * uniform(keys, ())[:, None, None, None]


def linear(params, images):
    return images.reshape(len(images), -1) @ params


PARAMS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
GREY = jnp.full((3, 2, 2, 1), 100, jnp.uint8)


def test_steps_and_restarts_draw_their_own_keys():
    crafting = Crafting(GREY, jnp.zeros(3, int), jnp.arange(3), KEY, jnp.float32(0.1), jnp.float32(0.01), 3)
    _, values = advance(OfTheKey(), crafting, start(crafting, 2), 3)
    assert len(np.unique(values)) == 6


def test_steps_and_draws_of_attacks_on_features_have_their_own_keys():
    drawn = [_draw_keys(KEY, step, draw, jnp.arange(3)) for step in (0, 1) for draw in (0, 1)]
    assert len({np.asarray(jax.random.key_data(each)).tobytes() for each in drawn}) == 4


def test_draws_of_a_view_are_their_own():
    keys, images = image_keys(KEY, jnp.arange(3)), jnp.ones((3, 2, 2, 1))
    for view in (View(transform=Dim()), View(augment=Dim())):
        first, second = (np.asarray(view(keys, images, draw)) for draw in (0, 1))
        assert (first != second).all()


def test_steps_of_trigger_attacks_draw_their_own_noise():
    common = {"transform": Dim(), "label": jnp.int32(1), "epsilon": jnp.float32(0.1), "transform_draws": 1}
    problem = NarcissusProblem(
        applies=(as_operand(linear),), members=(PARAMS,), key=KEY, images=GREY, learning_rate=jnp.float32(0.1),
        batch_size=3, optimizer="adam", saturate=False, **common,
    )  # fmt: skip
    losses = [float(narcissus_objective(jnp.zeros((2, 2, 1)), jnp.uint32(step), problem)) for step in (0, 1)]
    assert losses[0] != losses[1]
    still = dataclasses.replace(problem, transform=None)
    losses = [float(narcissus_objective(jnp.zeros((2, 2, 1)), jnp.uint32(step), still)) for step in (0, 1)]
    assert losses[0] == losses[1]
    problem = CleanLabelProblem(
        apply=as_operand(linear), members=(PARAMS,), keys=image_keys(KEY, jnp.arange(3)), images=GREY,
        step_size=jnp.float32(0.1), **common,
    )  # fmt: skip
    first, second = (clean_label_losses(problem, GREY / 255, jnp.uint32(step)) for step in (0, 1))
    assert (first != second).all()


def test_every_pass_over_a_class_has_its_own_order():
    first, second = (
        np.concatenate([class_batch(KEY, 12, 4, jnp.int32(3 * epoch + batch)) for batch in range(3)])
        for epoch in (0, 1)
    )
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12)) and (first != second).any()
