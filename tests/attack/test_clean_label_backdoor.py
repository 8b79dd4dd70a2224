"""Label-consistent backdoor: the ascent, the trigger, both ways to bound it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.clean_label_backdoor import clean_label_backdoor
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import poison_dataset, triggered_test_set


def craft(surrogate, digits, key=None, **arguments):
    key = jax.random.key(0) if key is None else key
    defaults = {"target": 3, "count": 12, "size": 3, "pattern": "white", "epsilon": 16 / 255}
    return clean_label_backdoor(*surrogate, key, *digits, **(defaults | arguments))


def test_named_images_become_poisons(surrogate, digits):
    bases = np.flatnonzero(digits[1] == 3)[4:9]
    assert craft(surrogate, digits, count=None, bases=bases, steps=1).index.tolist() == bases.tolist()
    with pytest.raises(ValueError, match=r"^count is 12 and fraction is None; bases name the images already$"):
        craft(surrogate, digits, bases=bases)


def test_poisons_are_harder_to_recognise_within_the_budget(surrogate, digits):
    poison = craft(surrogate, digits)
    assert poison.how["objective"] > 2 * poison.how["clean_objective"]
    base = digits[0][poison.index].astype(int)
    assert np.abs(poison.images - base).max() == 16
    assert (digits[1][poison.index] == 3).all() and (poison.labels == 3).all()
    inside = np.clip(255 - base[:, -3:, -3:], 0, 16)
    np.testing.assert_array_equal(poison.images[:, -3:, -3:] - base[:, -3:, -3:], inside)


def test_the_paper_pastes_the_trigger_at_full_strength(surrogate, digits):
    poison = craft(surrogate, digits, clamp_trigger=False)
    assert (poison.images[:, -3:, -3:] == 255).all() and poison.how["norm"] == "linf and patch"
    rest = poison.images.astype(int) - digits[0][poison.index]
    assert np.abs(rest[:, :-3]).max() <= 16
    dataset = Dataset(*digits, tuple("0123456789"))
    assert (triggered_test_set(dataset, poison).images[:, -3:, -3:] == 255).all()
    np.testing.assert_array_equal(poison_dataset(dataset, poison).images[poison.index], poison.images)


def test_the_ascent_is_projected_signed_gradient_ascent(surrogate, digits):
    """One long step ends at ±epsilon with the sign of the gradient, or at the border of the image box."""
    apply, params = surrogate
    poison = craft(surrogate, digits, steps=1, step_size=0.5, trigger=lambda images: images)
    images = jnp.asarray(digits[0][poison.index], jnp.float32) / 255

    def loss(images):
        return -jax.nn.log_softmax(apply(params, images))[:, 3].sum()

    # The start is random: only where the gradient of both ends of the start's box agrees is the sign certain.
    slopes = [np.sign(jax.grad(loss)(images + shift / 255)) for shift in (-8, 0, 8)]
    agreed = (slopes[0] == slopes[1]) & (slopes[1] == slopes[2])
    expected = np.clip(digits[0][poison.index] + 16 * slopes[1], 0, 255)
    assert (poison.images == expected)[agreed].mean() > 0.9
    assert poison.how["pattern"] == "function"


def test_batches_do_not_change_the_poisons(surrogate, digits):
    whole, parts = (craft(surrogate, digits, batch_size=size) for size in (500, 5))
    assert np.abs(whole.images.astype(int) - parts.images).max() <= 1
    np.testing.assert_allclose(whole.how["objective"], parts.how["objective"], rtol=1e-3)


def test_no_steps_leave_only_the_trigger(surrogate, digits):
    poison = craft(surrogate, digits, steps=0, clamp_trigger=False)
    np.testing.assert_array_equal(poison.images[:, :-3], digits[0][poison.index][:, :-3])
    assert poison.how["objective"] == poison.how["clean_objective"]


def halve(keys, images):
    return images / 2


def test_ensembles_and_transforms(surrogate, digits):
    apply, params = surrogate
    other = jax.tree.map(lambda leaf: leaf * 0.9, params)
    alone = [craft((apply, member), digits, steps=0).how["objective"] for member in (params, other)]
    both = craft((apply, [params, other]), digits)
    np.testing.assert_allclose(both.how["clean_objective"], np.mean(alone), rtol=1e-5)

    def halved(params, images):
        return apply(params, images / 2)

    adaptive, through = (craft(surrogate, digits, transform=halve, transform_draws=2),
                         craft((halved, params), digits))  # fmt: skip
    assert adaptive.how["adaptive"]
    np.testing.assert_allclose(adaptive.how["objective"], through.how["objective"], rtol=1e-4)


def test_steps_through_a_long_chain_loop_in_python_and_give_what_the_compiled_step_gives(surrogate, digits, long_chain):
    chain, looped = long_chain
    poison = craft(surrogate, digits, transform=chain, steps=3)
    assert looped.count(True) >= 1 + 3 + 2  # the attack's loop, and the chain in its steps and in both measures
    looped.clear()
    compiled = craft(surrogate, digits, transform=lambda keys, images: chain(keys, images), steps=3)
    assert looped.count(True) == 1
    assert (poison.images == compiled.images).mean() > 0.95
    for loss in ("clean_objective", "objective"):
        assert poison.how[loss] == pytest.approx(compiled.how[loss], rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1"),
        ({"steps": -1}, r"^steps=-1, step_size="),
        ({"step_size": 0.0}, r"^steps=20, step_size=0\.0, "),
        ({"count": 500}, r"^count is 500; there are only 183 images of class 3$"),
        ({"target": 10}, r"^target is 10; the labels of this data are 0 … 9$"),
        ({"size": 9}, r"^size is 9; a patch on 8x8 images must be 1 … 8$"),
    ],
)
def test_bad_input_is_one_clear_line(surrogate, digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(surrogate, digits, **arguments)
    assert "\n" not in str(caught.value)


def test_a_surrogate_that_breaks_is_refused(surrogate, digits):
    apply, params = surrogate
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    for steps, what in ((0, "loss is nan"), (2, "gradient is not finite")):
        with pytest.raises(ValueError, match=rf"^the surrogate's {what} on the poisons; its weights are at fault$"):
            craft((apply, broken), digits, steps=steps)
    with pytest.raises(ValueError, match=r"^target is 3; the surrogate's outputs are 0 … 1$"):
        craft((lambda params, images: apply(params, images)[:, :2], params), digits)
