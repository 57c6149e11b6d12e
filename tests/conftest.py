"""Signals as a terminal has them, and garbage collected less often.

nohup and a shell's background jobs ignore some signals, and tests' processes would inherit that.
"""

import gc
import signal

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Modules loaded by now stay: to look through their half a million objects again and again is 8% of what tests of the compiler take."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
