"""From what a user named to sessions and workloads: the only place that knows which targets there are."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_bench.measure import Session
from trtllm_bench.sweep.spec import Case, SweepSpec
from trtllm_workloads.arrivals import from_flags
from trtllm_workloads.request import Workload
from trtllm_workloads.synthetic import fixed, generator

DEFAULT_VOCABULARY = 32_000


class SessionMaker:
    """Opens the sessions of a sweep, and makes the workloads of its cells."""

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec

    def check(self) -> None:
        """Finds bad input before anything is measured. Raises the components' user errors."""
        if self.spec.target == "native":
            from trtllm_bench import native

            native.check(self.spec)
        if self.spec.dataset is not None:
            _ = self._dataset

    @property
    def on_gpu(self) -> bool:
        if self.spec.target != "native":
            return False
        from trtllm_bench import native

        return native.device_of(self.spec.device) == "cuda"

    def open(self, precision: str) -> Session:
        if self.spec.target == "native":
            from trtllm_bench import native

            return native.open_session(self.spec, precision, self.max_seq_len)
        from trtllm_bench.session import scripted_session

        return scripted_session(self.spec.target, max(self.spec.batch_size))

    @property
    def max_seq_len(self) -> int:
        """The longest sequence any cell asks for."""
        if self.spec.dataset is None:
            return self.spec.max_seq_len
        return int((self._dataset.input_tokens + self._dataset.output_tokens).max())

    def workload(self, case: Case, requests: int) -> Workload:
        """The requests of a cell: the dataset's first ones, or random prompts of the cell's lengths."""
        if self.spec.dataset is not None:
            made = self._dataset.head(requests if self.spec.num_requests else len(self._dataset))
        else:
            made = replace(fixed(requests, case.isl, case.osl, vocab_size=self._vocabulary, seed=self.spec.seed), name="fixed")
        if case.request_rate:
            arrivals = from_flags(case.request_rate, self.spec.burstiness)
            return made.with_arrivals(arrivals.times(made.num_arrivals, generator(self.spec.seed, "arrivals")))
        return made

    @cached_property
    def _dataset(self) -> Workload:
        from trtllm_workloads.dataset import read

        path = Path(str(self.spec.dataset))
        if not path.exists():
            raise BenchError(f"no dataset at {path}")
        return read(path)[0]

    @cached_property
    def _vocabulary(self) -> int:
        if self.spec.target != "native":
            return DEFAULT_VOCABULARY
        from trtllm_bench import native

        return native.vocabulary_of(self.spec.model)
