"""Signals as a terminal has them: nohup and a shell's background jobs ignore some, and tests' processes would inherit that."""

import signal

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
