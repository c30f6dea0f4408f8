"""What `tune` found, in words."""

from dataclasses import replace

from mobileone_q.evaluation.latency import Timing
from mobileone_q.report.tuning import TunedGraph, Tuning, answer, how

START = TunedGraph((), "saturating", 0.0064, Timing(2.85, 3.0))
CHOSEN = TunedGraph(("stem", "stage1.0.dw"), "saturating", 0.0054, Timing(2.5, 2.6))
TUNING = Tuning(
    "onnxruntime 1.0", "a CPU", 1, 1, "kl", 0.0064, 100, START, CHOSEN, "fp32", Timing(5.5, 5.6), 0.0065,
    88, 120.4, True, "processor",
)  # fmt: skip


def test_what_was_chosen_what_it_won_and_what_it_cost():
    assert answer(TUNING) == (
        "Chosen: stem, stage1.0.dw in FP32. It takes 2.500 ms: 1.14 times as fast as before (2.850 ms), "
        "2.20 times as fast as FP32 (5.500 ms). KL 0.0054 nats on 100 images, 0.0064 before, 0.0064 allowed."
    )
    drop = replace(TUNING, budget="drop", limit=0.5, start=replace(START, cost=0.25))
    assert answer(drop).endswith("Drop +0.01 points on 100 images, +0.25 before, +0.50 allowed.")
    plain = replace(TUNING, chosen=replace(CHOSEN, keep_float=(), activation_grids="plain"))
    assert answer(plain).startswith("Chosen: plain grids. It takes")
    many = replace(TUNING, chosen=replace(CHOSEN, keep_float=("a", "b", "c", "d", "e")))
    assert answer(many).startswith("Chosen: 5 blocks in FP32. It takes")


def test_that_nothing_was_faster():
    assert answer(replace(TUNING, chosen=START)).startswith("The graph stays as it was: no other was faster")


def test_that_int8_does_not_pay():
    """A gain of half a percent is within what two measurements of one engine differ by."""
    assert answer(replace(TUNING, float_precision="fp16", floating=Timing(2.51, 2.6))) == (
        "INT8 does not pay here: take FP16. It takes 2.510 ms, the graph as it was 2.850 ms, and the fastest "
        "mix that was found 2.500 ms."
    )


def test_that_the_budget_leaves_floating_point_alone():
    everything = TunedGraph(("stem", "head"), "saturating", 0.0, Timing(5.5, 5.6))
    assert answer(replace(TUNING, chosen=everything, limit=0.001)) == (
        "No faster graph is within the budget: take FP32, or allow more. FP32 takes 5.500 ms, the graph as "
        "it was 2.850 ms. KL 0.0000 nats on 100 images, 0.0064 before, 0.0010 allowed."
    )


def test_how_it_was_chosen():
    assert how(TUNING) == (
        "tuned in onnxruntime 1.0 on a CPU, 1 thread, batch 1, times of the processor: 88 graphs built and "
        "timed in 120 s, nothing left to try"
    )
    wall = how(replace(TUNING, threads=2, is_complete=False, clock="wall"))
    assert wall.endswith("2 threads, batch 1: 88 graphs built and timed in 120 s, time was up")
