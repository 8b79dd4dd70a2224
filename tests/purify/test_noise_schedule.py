"""Noise schedules against recorded tables."""

import numpy as np
import pytest

from jaxpurify.purify.schedule import Schedule
from tests.networks.golden import GOLDEN


def test_the_linear_schedule_is_the_recorded_one():
    table = Schedule().alpha_bars()
    assert table.shape == (1000,) and table.dtype == np.float64
    for timestep, recorded in GOLDEN["scheduler"]["alphas_cumprod"].items():
        assert abs(table[int(timestep)] - recorded) < 1e-6
    betas = 1 - table / np.concatenate([[1], table[:-1]])
    np.testing.assert_allclose(betas[[0, 1, 2, -1]], GOLDEN["scheduler"]["betas_first3_last"], rtol=1e-6)


def test_the_cosine_schedule_is_the_formula():
    table = Schedule("cosine", 100).alpha_bars()
    position = (np.arange(101) / 100 + 0.008) / 1.008
    expected = np.cos(position * np.pi / 2) ** 2
    np.testing.assert_allclose(table[:-1], expected[1:-1] / expected[0], rtol=1e-9)
    np.testing.assert_allclose(table[-1], table[-2] * 0.001)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_signal_only_falls_and_minus_one_is_clean(kind):
    schedule = Schedule(kind, 50)
    assert schedule.signal_variance(-1) == 1
    signal = [schedule.signal_variance(timestep) for timestep in range(-1, 50)]
    assert (np.diff(signal) < 0).all() and signal[-1] > 0
    assert schedule == Schedule(kind, 50) and hash(schedule) == hash(Schedule(kind, 50))


def test_refusals():
    with pytest.raises(ValueError, match="'sigmoid'; known: linear, cosine"):
        Schedule("sigmoid")
    with pytest.raises(ValueError, match="length=0; it must be at least 1"):
        Schedule(length=0)
