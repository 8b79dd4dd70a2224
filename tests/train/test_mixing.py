"""The loss of mixed images against recorded values of the published code, and against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.train.mixing import mixed_correct, mixed_cross_entropy

INDEX = np.arange(12)
LOGITS = jnp.asarray((np.sin(1.3 * INDEX + 0.2) * (1 + 0.1 * np.cos(0.37 * INDEX))).reshape(4, 3), jnp.float32)
LABELS = jnp.array([[0, 1, 2, 0], [1, 1, 0, 2]])
WEIGHTS = jnp.array([0.7, 0.3])


def test_recorded_loss_and_correct_predictions():
    np.testing.assert_allclose(mixed_cross_entropy(LOGITS, LABELS, WEIGHTS).mean(), 1.5697929739, rtol=1e-6)
    np.testing.assert_allclose(mixed_correct(LOGITS, LABELS, WEIGHTS).sum(), 0.9, rtol=1e-6)


def test_it_is_the_cross_entropy_against_the_mixed_label():
    label = (WEIGHTS.reshape(2, 1, 1) * jax.nn.one_hot(LABELS, 3)).sum(0)
    expected = -(label * jax.nn.log_softmax(LOGITS)).sum(-1)
    np.testing.assert_allclose(mixed_cross_entropy(LOGITS, LABELS, WEIGHTS), expected, rtol=1e-6)


def test_a_label_in_several_parts_counts_with_all_of_them():
    labels, weights = jnp.array([[2, 0], [2, 1], [1, 0]]), jnp.array([0.5, 0.3, 0.2])
    logits = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(mixed_correct(logits, labels, weights), [0.8, 0.7], rtol=1e-6)


def test_rows_that_do_not_fit_are_one_clear_line():
    for function in (mixed_cross_entropy, mixed_correct):
        with pytest.raises(ValueError, match=r"^1 weights for 2 rows of labels; one each and at least one needed$"):
            function(LOGITS, LABELS, WEIGHTS[:1])
        with pytest.raises(ValueError, match=r"^4 labels a row for 3 images; one each needed$"):
            function(LOGITS[:3], LABELS, WEIGHTS)
