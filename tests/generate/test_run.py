"""The outer loop of generative training: checkpoints, restarts, divergence; with steps that need no network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import checkpoint
from jaxpurify.generate import run as outer
from jaxpurify.generate.run import MAX_RESTARTS, run
from jaxpurify.struct import struct
from jaxpurify.train.state import TrainingDiverged

KEY = jax.random.key(0)
IMAGES = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)


@struct
class State:
    total: jax.Array
    step: jax.Array
    restarts: jax.Array


def start():
    return State(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Walk:
    """Adds a number drawn for the step, and the images of the batch; breaks at `broken` before `healed` restarts."""

    def __init__(self, broken=None, healed=0, seen_at_once=True):
        self.broken, self.healed, self.seen_at_once = broken, healed, seen_at_once
        self.seen = []

    def __call__(self, state, key, rows, images):
        step = int(state.step)
        self.seen.append((step, int(state.restarts), sorted(np.asarray(rows).tolist())))
        before, total = state.total, state.total + jax.random.uniform(key) + images[rows].sum()
        if step == self.broken and int(state.restarts) < self.healed:
            total = jnp.array(jnp.nan)
        return dataclasses.replace(state, total=total, step=state.step + 1), {
            "loss": total if self.seen_at_once else before
        }


@pytest.fixture(autouse=True)
def checkpoints_after_every_interval(monkeypatch):
    monkeypatch.setattr(outer, "PAUSE", 0.0)


def go(step, **options):
    defaults = {
        "steps": 10,
        "batch_size": 4,
        "interval": 3,
        "unhealthy": lambda metrics, first: None if np.isfinite(metrics["loss"]).all() else "the loss is not finite",
        "retreat": lambda state: dataclasses.replace(state, restarts=state.restarts + 1),
    }
    return run(step, start(), IMAGES, KEY, **{**defaults, **options})


def test_every_epoch_sees_every_image_once():
    walk, reported = Walk(), []
    state, history = go(walk, progress=lambda done, total, metrics: reported.append((done, total, metrics["loss"])))
    assert int(state.step) == 10 and [step for step, _, _ in walk.seen] == list(range(10))
    for epoch in range(3):
        rows = [row for _, _, rows in walk.seen[3 * epoch : 3 * epoch + 3] for row in rows]
        assert sorted(rows) == list(range(12))
    assert walk.seen[0][2] != walk.seen[3][2] or walk.seen[1][2] != walk.seen[4][2]
    assert [(done, total) for done, total, _ in reported] == [(3, 10), (6, 10), (9, 10), (10, 10)]
    np.testing.assert_array_equal(history["loss"], [loss for _, _, loss in reported])


class Stop(Exception):
    pass


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    whole, _ = go(Walk())

    def stop(done, total, metrics):
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        go(Walk(), directory=tmp_path, progress=stop)
    assert checkpoint.steps(tmp_path) == [3, 6]
    walk = Walk()
    continued, history = go(walk, directory=tmp_path, interval=2)
    assert len(history["loss"]) == 4  # two intervals before it was stopped and two after
    assert [step for step, _, _ in walk.seen] == [6, 7, 8, 9]
    np.testing.assert_array_equal(continued.total, whole.total)
    # A finished run has nothing left to do.
    walk = Walk()
    again, history = go(walk, directory=tmp_path)
    assert walk.seen == [] and len(history["loss"]) == 4 and again.total == whole.total


def test_history_that_is_ahead_of_the_last_checkpoint_is_passed_over(tmp_path):
    def stop(done, total, metrics):
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        go(Walk(), directory=tmp_path, progress=stop)
    with open(tmp_path / outer.HISTORY, "a") as file:
        file.write('{"step": 9, "loss": -1.0}\n')
    _, history = go(Walk(), directory=tmp_path, interval=2)
    assert len(history["loss"]) == 4 and (history["loss"] > 0).all()
    rows = map(json.loads, (tmp_path / outer.HISTORY).read_text().splitlines())
    assert [row["step"] for row in rows] == [3, 6, 8, 10]


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(outer, "PAUSE", 1e9)
    steps = []
    go(Walk(), directory=tmp_path, progress=lambda done, *_: steps.append(checkpoint.steps(tmp_path)))
    assert steps == [[3], [3], [3], [3, 10]]  # the first, and the last


def test_a_folder_belongs_to_one_training(tmp_path):
    options = {"steps": 10, "batch_size": 4, "unhealthy": lambda metrics, first: None, "retreat": lambda state: state}
    options |= {"directory": tmp_path}
    outer.run(Walk(), start(), IMAGES, KEY, recipe={"rate": 1}, **options)
    with pytest.raises(ValueError, match="holds checkpoints of another recipe; remove it or use another"):
        outer.run(Walk(), start(), IMAGES, KEY, recipe={"rate": 2}, **options)
    with pytest.raises(ValueError, match="holds checkpoints of another key; remove it or use another"):
        outer.run(Walk(), start(), IMAGES, jax.random.key(99), recipe={"rate": 1}, **options)


def test_a_broken_interval_is_tried_again_with_other_noise(tmp_path):
    walk = Walk(broken=7, healed=2)
    state, history = go(walk, directory=tmp_path)
    assert int(state.step) == 10 and int(state.restarts) == 2
    assert np.isfinite(history["loss"]).all() and len(history["loss"]) == 4
    tries = [(step, restarts) for step, restarts, _ in walk.seen if step == 6]
    assert tries == [(6, 0), (6, 1), (6, 2)]
    batches = [rows for step, _, rows in walk.seen if step == 6]
    assert batches[0] != batches[1] or batches[1] != batches[2]
    assert int(checkpoint.restore(tmp_path, 10, start()).restarts) == 2


def test_hopeless_training_names_the_step_and_the_checkpoint(tmp_path):
    walk = Walk(broken=7, healed=99)
    message = rf"diverged between steps 6 and 9: the loss is not finite; last good checkpoint: step 6 in {tmp_path}"
    with pytest.raises(TrainingDiverged, match=message):
        go(walk, directory=tmp_path)
    assert [restarts for step, restarts, _ in walk.seen if step == 7] == list(range(MAX_RESTARTS + 1))
    assert checkpoint.steps(tmp_path) == [3, 6]
    with pytest.raises(TrainingDiverged, match="no checkpoint was kept"):
        go(Walk(broken=0, healed=99))


@pytest.mark.parametrize("broken", [8, 9])  # the last step of an interval, and of all
def test_weights_that_break_in_the_last_step_of_an_interval_are_no_good_state(broken, tmp_path):
    walk = Walk(broken=broken, healed=1, seen_at_once=False)
    state, history = go(walk, directory=tmp_path)
    assert np.isfinite(float(state.total)) and int(state.restarts) == 1 and np.isfinite(history["loss"]).all()
    with pytest.raises(
        TrainingDiverged, match=rf"steps {broken // 3 * 3 if broken < 9 else 9} and .*: the weights are"
    ):
        go(Walk(broken=broken, healed=99, seen_at_once=False))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="12 training images are fewer than one batch of 13"):
        go(Walk(), batch_size=13)
