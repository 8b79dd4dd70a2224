"""What counts as success: the attacker's class, any wrong class, triggered images, published targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import Dataset, Poison, Targets
from jaxpurify.data.triggers import PatchTrigger
from jaxpurify.evaluate.victims import attack_success, target_hits

IMAGES = np.zeros((4, 4, 4, 1), np.uint8)
TEST = Dataset(IMAGES, np.array([0, 1, 2, 3]), tuple("abcd"))
TARGETS = Targets(IMAGES[:3], np.array([0, 1, 2]), np.arange(3))


def says(label):
    return lambda images: jnp.zeros((len(images), 4)).at[:, label].set(1)


def bright_is_three(images):
    return jax.nn.one_hot(jnp.where(images.max((1, 2, 3)) > 0.5, 3, 0), 4)


def poison(trigger=None, targets=TARGETS, **how):
    return Poison(IMAGES[:1], np.array([3]), np.array([0]), 3, trigger, how, targets)


@pytest.mark.parametrize(
    ("label", "taken", "astray"), [(3, [True] * 3, [True] * 3), (2, [False] * 3, [True] * 2 + [False])]
)
def test_self_betrayal_wants_any_wrong_class(label, taken, astray):
    for how, hits in (({}, taken), ({"criterion": "xent"}, taken), ({"criterion": "unxent"}, astray)):
        aimed = poison(**how)
        assert target_hits(says(label), aimed) == hits
        counts = attack_success(says(label), aimed, TEST)
        assert counts.hits.tolist()[:3] == hits and counts.trials.tolist()[:3] == [1, 1, 1]


def test_hidden_triggers_are_counted_on_their_source_class():
    still = poison(lambda images: images, None, source=1)
    counts = attack_success(says(3), still, TEST)
    assert counts.trials.tolist() == [0, 1] and counts.fraction == 1.0


def test_published_targets_carry_the_trigger_already():
    white = PatchTrigger(np.ones((4, 4, 1), np.float32), np.ones((4, 4, 1), np.float32))
    shown = Targets(np.concatenate([IMAGES[:1], IMAGES[:1] + 255]), np.array([0, 1]), np.arange(2))
    published = poison(white, shown)
    assert target_hits(bright_is_three, published) == [False, True]
    assert attack_success(bright_is_three, published, TEST).fraction == 1.0  # on triggered test images
    assert target_hits(bright_is_three, poison(white, None)) is None
    assert attack_success(bright_is_three, poison(None, None), TEST) is None
