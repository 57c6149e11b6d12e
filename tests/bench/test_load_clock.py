"""The real clock's inbox. `FakeClock` is what the driver's other tests run on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

from trtllm_bench.load.clock import RealClock
from trtllm_bench.load.target import RequestOutcome

SHORT_WAITS = """
from trtllm_bench.load.clock import RealClock
from trtllm_bench.load.target import RequestOutcome

clock, outcome = RealClock(), RequestOutcome(0, 0.0, 0)
end_s = clock.now() + 1.0
while clock.now() < end_s:
    clock.deliver(outcome)
    assert clock.poll() is outcome
    assert clock.wait(clock.now() + 5e-6) is None
"""


def test_a_short_wait_ends_though_the_thread_stands_still_meanwhile() -> None:
    """Stopped again and again for some microseconds, at any instruction; `queue.SimpleQueue.get` then soon waits for ever."""
    waiter = subprocess.Popen([sys.executable, "-c", SHORT_WAITS])
    give_up_s = time.monotonic() + 60.0
    try:
        while waiter.poll() is None and time.monotonic() < give_up_s:
            waiter.send_signal(signal.SIGSTOP)
            waiter.send_signal(signal.SIGCONT)
            time.sleep(0)
        assert waiter.returncode == 0
    finally:
        waiter.kill()
        waiter.wait()


def test_outcomes_end_a_wait_in_order_from_any_thread() -> None:
    clock = RealClock()
    outcomes = [RequestOutcome(number, 0.0, 0) for number in range(200)]
    sender = threading.Thread(target=lambda: [clock.deliver(outcome) for outcome in outcomes])
    sender.start()
    seen = [clock.wait(time.perf_counter() + 60.0) for _ in outcomes]
    sender.join()
    assert seen == outcomes
    assert clock.poll() is None
    assert clock.wait(time.perf_counter() - 1.0) is None
