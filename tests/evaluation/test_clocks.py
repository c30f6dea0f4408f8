import signal
import time

from mobileone_q.evaluation.clocks import clock_for, has_fine_processor_time


def test_a_coarse_clock_of_processor_time_is_not_used():
    """A timer of processor time makes Linux count in ticks, by which a short run takes no time at all."""
    has_fine_processor_time.cache_clear()
    before = signal.setitimer(signal.ITIMER_PROF, 1000)
    try:
        is_fine = has_fine_processor_time()
        is_ticking = len({time.process_time() for _ in range(1000)}) < 10
    finally:
        signal.setitimer(signal.ITIMER_PROF, *before)
        has_fine_processor_time.cache_clear()
    assert is_fine is not is_ticking


def test_processor_time_is_for_one_cpu_thread():
    assert clock_for(1) == ("processor" if has_fine_processor_time() else "wall")
    assert clock_for(2) == clock_for(1, on_cpu=False) == "wall"
