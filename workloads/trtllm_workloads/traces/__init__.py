"""Published request traces as columns. One file per format; `reading.py` finds the format, streams the file and names bad rows."""

from trtllm_workloads.traces.reading import FORMATS, iter_trace, read_trace
from trtllm_workloads.traces.trace import Trace

__all__ = ["FORMATS", "Trace", "iter_trace", "read_trace"]
