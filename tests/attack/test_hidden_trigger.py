"""Hidden-trigger backdoor: pairings, published losses, where the trigger is and where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import loop
from jaxpurify.attack.hidden_trigger import greedy_pairs, hidden_trigger, hidden_trigger_loss
from tests.attack import golden

KEY = jax.random.key(1)


def craft(digits, apply=golden.hidden, params=None, key=KEY, **arguments):
    params = golden.hidden_weights() if params is None else params
    defaults = {"target": 7, "source": 3, "count": 20, "steps": 40, "epsilon": 32 / 255, "size": 3, "inset": 1}
    return hidden_trigger(apply, params, key, *digits, **(defaults | arguments))


def test_named_images_become_poisons(digits):
    bases = np.flatnonzero(digits[1] == 7)[4:9]
    assert craft(digits, count=None, bases=bases, steps=1).index.tolist() == bases.tolist()
    with pytest.raises(ValueError, match=r"^base 0 is of class 0; poisons must be of class 7$"):
        craft(digits, count=None, bases=np.array([0]))


def test_pairs_and_loss_of_the_framework_repeat_poisons():
    with jax.enable_x64(True):
        poisons, sources = jnp.asarray(golden.POISONS), jnp.asarray(golden.waves((8, 6), 2.2))
        aims = golden.network_features(sources)

        def loss(rows):
            return hidden_trigger_loss(golden.network_features(rows), aims, "entry") / 5

        value, gradient = jax.value_and_grad(loss)(poisons)
        np.testing.assert_allclose(value, 0.2382424326, rtol=1e-8)
        np.testing.assert_allclose(jnp.linalg.norm(gradient), 0.2751802437, rtol=1e-8)
        distances = ((golden.network_features(poisons)[:, None] - aims[None]) ** 2).sum(-1)
        pairs = [(6, 1), (7, 2), (5, 0), (4, 3), (2, 1), (1, 0), (6, 5), (0, 3)]
        assert list(map(tuple, greedy_pairs(distances, "entry").tolist())) == pairs


def test_pairs_of_the_benchmarks_random_features():
    generator = np.random.RandomState(0)
    generator.randn(5, 8), generator.randn(1, 8)
    for shape in ((3, 4), (4,), (3, 4), (4,)):
        generator.randn(*shape)
    poisons, sources = (jnp.asarray(generator.randn(4, 6), jnp.float32) for _ in range(2))
    distances = ((poisons[:, None] - sources[None]) ** 2).sum(-1)
    assert greedy_pairs(distances, "entry").tolist() == [[2, 3], [1, 1], [0, 0], [1, 3]]
    assert greedy_pairs(distances, "one_to_one").tolist() == [[2, 3], [1, 1], [0, 0], [3, 2]]
    np.testing.assert_allclose(hidden_trigger_loss(poisons, sources), 22.37801015, rtol=1e-5)


def test_one_to_one_pairing_uses_every_poison_and_source_once():
    distances = jax.random.uniform(jax.random.key(2), (7, 7))
    pairs = np.asarray(greedy_pairs(distances))
    assert sorted(pairs[:, 0]) == sorted(pairs[:, 1]) == list(range(7))
    taken = np.asarray(distances)[pairs[:, 0], pairs[:, 1]]
    assert (np.diff(taken) > 0).all() and taken[0] == distances.min()
    assert greedy_pairs(distances[:, :3]).shape == (3, 2)


@pytest.mark.parametrize("arguments", [{}, {"pairing": "entry", "random_place": True, "objective": "mean_squared"}])
def test_poisons_approach_triggered_sources_and_do_not_show_the_trigger(digits, arguments):
    poison = craft(digits, **arguments)
    assert poison.how["objective"] < 0.9 * poison.how["clean_objective"]
    moved = poison.images.astype(int) - digits[0][poison.index]
    assert 16 < np.abs(moved).max() <= 32
    assert (digits[1][poison.index] == 7).all() and (poison.labels == 7).all() and poison.targets is None


def test_the_test_time_trigger_is_a_patch_away_from_the_corner(digits):
    poison = craft(digits, pattern="white", steps=1)
    triggered = np.asarray(poison.trigger(jnp.zeros((1, 8, 8, 1))))[0, :, :, 0]
    expected = np.zeros((8, 8))
    expected[4:7, 4:7] = 1
    np.testing.assert_array_equal(triggered, expected)


def test_sources_of_all_other_classes_and_new_sources_every_step(digits, monkeypatch):
    given, genuine = [], loop.scan

    def scan(step, state, steps, *operands, **options):
        if operands:  # not the pairing's own loop
            given.append((step, state, *operands))
        return genuine(step, state, steps, *operands, **options)

    monkeypatch.setattr(loop, "scan", scan)
    assert craft(digits, source=None, count=50, steps=1).how["source"] is None
    ((step, state, problem, sources),) = given
    np.testing.assert_array_equal(sources.pool, digits[0][digits[1] != 7])
    first, second = (step(state, jnp.uint32(index), problem, sources)[1] for index in (0, 1))
    assert first != second


def noise(keys, images):
    return images + 0.1 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)


def test_ensembles_and_transforms(digits):
    members = [golden.hidden_weights(seed) for seed in (0, 1)]
    poison = craft(digits, params=members, transform=noise, transform_draws=2, steps=20)
    assert poison.how["members"] == 2 and poison.how["adaptive"]
    assert poison.how["objective"] < poison.how["clean_objective"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1"),
        ({"source": 7}, r"^source is 7, the target class; triggered images of it need no attack$"),
        ({"source": 11}, r"^target is 11; the labels of this data are 0 … 9$"),
        ({"count": 180}, r"^count is 180; there are only 179 images of class 7$"),
        ({"target": 3, "source": 8, "count": 178}, r"^count is 178; there are only 174 images to carry the trigger$"),
        ({"pairing": "best"}, r"^pairing is 'best'; known: one_to_one, entry$"),
        ({"objective": "cosine"}, r"^objective is 'cosine'; known: squared, mean_squared$"),
        ({"size": 6, "inset": 3}, r"^inset is 3 and size 6; together they must fit into 8x8 pixels$"),
        ({"pattern": "cross"}, r"^pattern is 'cross'; known: "),
        ({"steps": 0}, r"^steps is 0; it must be at least 1$"),
    ],
)
def test_bad_input_is_one_clear_line(digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(digits, **arguments)
    assert "\n" not in str(caught.value)
