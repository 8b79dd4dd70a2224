"""The arithmetic of the benchmark; nothing here is timed and PyTorch is not imported."""

import numpy as np
import pytest

from experiments.bench.timing import DifferentWork, Work, alternate, bound, check_agreement, compare


class Clock:
    """Time that passes only in work."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds

        return call


def test_alternate_counts_calls_a_second_and_takes_turns():
    clock = Clock()
    calls = {"ours": clock.work("ours", 0.125), "peer": clock.work("peer", 0.25)}
    rates = alternate(calls, rounds=3, seconds=0.5, pause=0.0, clock=clock)
    assert rates == {"ours": [8.0] * 3, "peer": [4.0] * 3}
    warm_up, ours, peer = ["ours"] * 2 + ["peer"] * 2, ["ours"] * 4, ["peer"] * 2
    assert clock.log == warm_up + ours + peer + peer + ours + ours + peer


def test_alternate_runs_slow_work_once_and_refuses_no_rounds():
    clock = Clock()
    assert alternate({"ours": clock.work("ours", 2.0)}, rounds=2, seconds=0.5, pause=0.0, clock=clock) == {
        "ours": [0.5, 0.5]
    }
    assert len(clock.log) == 4
    with pytest.raises(ValueError, match="rounds=0"):
        alternate({"ours": clock.work("ours", 1.0)}, rounds=0, seconds=0.5)


def test_compare_takes_ratios_within_rounds_and_the_peer_with_the_best_median():
    # The machine is half as fast in the second round: rates change, ratios do not.
    ours = [100.0, 50.0, 100.0]
    peers = {"idiomatic": [50.0, 25.0, 40.0], "tuned": [200.0, 100.0, 80.0], "compiled": [90.0, 90.0, 300.0]}
    row = compare(ours, peers)
    assert (row["ours"], row["peer"], row["peer_variant"]) == (100.0, 100.0, "tuned")
    assert (row["ratio_min"], row["ratio_median"], row["ratio_max"]) == (0.5, 0.5, 1.25)
    assert row["variants"]["idiomatic"] == {"rate": 40.0, "ratio_median": 2.0, "ratio_min": 2.0, "ratio_max": 2.5}
    assert set(row["variants"]) == set(peers)


def test_compare_refuses_missing_peers_and_missing_rounds():
    with pytest.raises(ValueError, match="peers is empty"):
        compare([1.0], {})
    with pytest.raises(ValueError):
        compare([1.0, 2.0], {"tuned": [1.0]})


def test_different_work_is_refused():
    ours = (np.array([3.0, -4.0]),)
    check_agreement("tuned", ours, (np.array([3.0, -4.004]),))
    with pytest.raises(DifferentWork, match=r"tuned: output 0 differs by 0\.006 of 5"):
        check_agreement("tuned", ours, (np.array([3.0, -4.006]),))
    with pytest.raises(DifferentWork, match="differs by nan"):
        check_agreement("tuned", ours, (np.array([3.0, np.nan]),))
    with pytest.raises(DifferentWork, match=r"is \(3,\), ours is \(2,\)"):
        check_agreement("tuned", ours, (np.zeros(3),))


def measured(ours, peer, jax, torch):
    return {
        "precision": "bfloat16",
        "peer_variant": "tuned",
        "achieved_gflops": {"ours": ours, "peer": peer},
        "matmul_gflops": {"jax": jax, "torch": torch},
    }


def test_bound_names_the_smaller_of_the_two_factors():
    # 60 / 120 is a quarter of the product's speed and twice the peer's share of it.
    slow_product = bound(measured(ours=60.0, peer=120.0, jax=100.0, torch=400.0))
    assert slow_product.startswith(
        "ours 60 of 100 GFLOP/s (60% of JAX's bfloat16 matrix product), tuned 120 of 400 (30%"
    )
    assert "factors 0.25 of the products and 2.00 of their use: bound by JAX's matrix product" in slow_product
    little_use = bound(measured(ours=30.0, peer=120.0, jax=400.0, torch=400.0))
    assert "factors 1.00 of the products and 0.25 of their use: bound by what is not a large matrix" in little_use


def test_bound_says_nothing_without_a_count_of_operations():
    row = measured(1.0, 2.0, 3.0, 4.0)
    del row["achieved_gflops"]
    assert bound(row) == ""


def test_tolerance_of_a_row_decides_what_agrees():
    ours, peer = (np.array([3.0, -4.0]),), (np.array([3.0, -4.4]),)
    work = Work(1, "images/s", None, {}, precision="bfloat16", tolerance=0.15)
    check_agreement("tuned", ours, peer, work.tolerance)
    with pytest.raises(DifferentWork, match=r"differs by 0\.4 of 5"):
        check_agreement("tuned", ours, peer, Work(1, "images/s", None, {}).tolerance)
