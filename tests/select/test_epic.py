"""EPIC drops exactly the planted singletons, in whatever order the examples come."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.select import epic, last_layer_gradient
from jaxpurify.select.epic import _similarity, facility_location


@pytest.fixture
def toy():
    """Two classes of three tight groups of ten each, with three and two examples that stand alone."""
    random = np.random.RandomState(0)
    points, labels, alone = [], [], []
    for label, singles in ((0, 3), (1, 2)):
        centres = 10 * random.standard_normal((3 + singles, 4))
        for centre in centres[:3]:
            points.append(centre + 0.01 * random.standard_normal((10, 4)))
            alone += [False] * 10
        points.append(centres[3:])
        alone += [True] * singles
        labels += [label] * (30 + singles)
    return np.concatenate(points).astype(np.float32), np.array(labels), np.array(alone)


FRACTIONS = {0: 6 / 33 + 1e-6, 1: 5 / 32 + 1e-6}


def selected(points, labels, **options):
    """As many medoids as there are groups and singletons: six in the first class, five in the second."""
    keep = np.zeros(len(labels), bool)
    for label, fraction in FRACTIONS.items():
        part = labels == label
        keep[part] = epic(points[part], labels[part], fraction=fraction, **options).keep
    return keep


def test_exactly_the_planted_singletons_are_dropped(toy):
    points, labels, alone = toy
    np.testing.assert_array_equal(selected(points, labels), ~alone)


def test_it_stays_correct_under_a_shuffled_loader(toy):
    points, labels, alone = toy
    for seed in range(3):
        order = np.random.RandomState(seed).permutation(len(labels))
        np.testing.assert_array_equal(selected(points[order], labels[order]), ~alone[order])


def test_classes_are_clustered_on_their_own(toy):
    points, labels, alone = toy
    # Class 1 moved onto class 0: clusters do not mix.
    moved = points.copy()
    moved[labels == 1] = moved[labels == 1] - moved[labels == 1].mean(0) + moved[labels == 0].mean(0)
    selection = epic(moved, labels, fraction=FRACTIONS[0])
    assert not selection.keep[alone & (labels == 0)].any() and selection.keep[~alone & (labels == 0)].all()
    assert selection.score[~alone & (labels == 0)].tolist() == [10] * 30
    assert (selection.score[alone] == 1).all()


def test_what_was_dropped_stays_dropped(toy):
    points, labels, _ = toy
    earlier = np.ones(len(labels), bool)
    earlier[[0, 40]] = False
    selection = epic(points, labels, fraction=0.05, earlier=earlier)
    assert not selection.keep[[0, 40]].any() and selection.keep.sum() > 30


def test_the_greedy_choice_is_the_greedy_one():
    random = np.random.RandomState(2)
    similarity = random.uniform(size=(7, 7)).astype(np.float32)
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1)
    chosen = []
    for _ in range(3):
        values = {j: similarity[:, [*chosen, j]].max(1).sum() for j in range(7) if j not in chosen}
        chosen.append(max(values, key=lambda j: values[j]))
    assert facility_location(jnp.asarray(similarity), 3).tolist() == chosen
    best = max(itertools.combinations(range(7), 3), key=lambda rows: similarity[:, list(rows)].max(1).sum())
    reached = similarity[:, chosen].max(1).sum()
    assert reached >= (1 - 1 / np.e) * similarity[:, list(best)].max(1).sum()
    # All of them, also when nothing is gained by the last.
    assert sorted(facility_location(jnp.ones((4, 4)), 4).tolist()) == [0, 1, 2, 3]


def test_published_choices():
    """T14 of poisoning.md: the clusters of the published code, and its kernel."""
    index = np.arange(72)
    logits = 2 * (np.sin(1.3 * index + 0.3) * (1 + 0.1 * np.cos(0.37 * index))).reshape(24, 3)
    labels = np.arange(24) % 3
    logits[np.arange(24), labels] += 2
    logits[5], logits[16] = [4, 0, 0], [0, 0, 5]
    gradients = last_layer_gradient(logits, labels)
    selection = epic(gradients, labels, fraction=0.5)
    assert np.flatnonzero(~selection.keep).tolist() == [6, 8, 13, 16, 20]
    medoids = [21, 3, 18, 6, 4, 22, 13, 16, 20, 11, 23, 8]
    assert selection.score[medoids].tolist() == [2, 2, 3, 1, 4, 2, 1, 1, 1, 3, 3, 1]
    selection = epic(gradients, labels, fraction=0.25)
    assert selection.keep.all() and selection.score[[21, 3, 4, 22, 20, 11]].tolist() == [5, 3, 5, 3, 4, 4]
    points = (np.sin(1.3 * index + 0.2) * (1 + 0.1 * np.cos(0.37 * index)))[:18].reshape(6, 3)
    kernel = [1, 0.48731, 0.56799, 0.69701, 0.47103, 0.73417]
    np.testing.assert_allclose(_similarity(points.astype(np.float32))[0], kernel, atol=1e-5)


def test_the_gradient_of_the_last_layer():
    gradient = last_layer_gradient(np.array([[0.0, np.log(3.0)], [0.0, 0.0]], np.float32), np.array([0, 1]))
    np.testing.assert_allclose(gradient, [[-0.75, 0.75], [0.5, -0.5]], atol=1e-6)


def test_refusals(toy):
    points, labels, _ = toy
    with pytest.raises(ValueError, match=r"fraction=0\.0"):
        epic(points, labels, fraction=0.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        epic(np.full_like(points, np.nan), labels)
    with pytest.raises(ValueError, match="2 gradients for 65 labels"):
        epic(points[:2], labels)
