"""A model's engine in memory, run over one text at a time with inner values read back.

Perplexity looks at the graph an engine really runs, fused and paged, through the runners that serve (references on a CPU, the compiled
kernels on a GPU), with the values it wants marked as outputs. Rejected: hooks on a framework's copy of the model (another graph, whose
values are not the ones quantized), and an engine folder on disk (twice the model's bytes, for one run). Calibration runs one layer at a
time instead (`layerwise`): a model to be quantized is often one that memory cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.checkpoints.write import assemble, check_weights
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.fingerprint import CPU, detect_target
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.batch import IntArray, StepBatch
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.pages import RESERVED_PAGES

Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""
PAGE_SIZE = 32


class Probe:
    """`marks` names, given the plan, the values to read. `window`: longest text, in tokens; `chunk`: most tokens of it a step."""

    def __init__(
        self,
        model: str | Path,
        precision: str,
        marks: Callable[[Plan], Sequence[str]],
        *,
        window: int,
        chunk: int | None = None,
        kv_dtype: str = "auto",
        context_attention: str = WIDE,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Raises `EngineError` for a model that cannot be read, and texts longer than it can be."""
        source = resolve_model(model)
        if source.path is None:
            raise EngineError(f"{model} is a preset, which has no weights of its own; give a Hugging Face folder or a .gguf file")
        self.weights = open_weights(source.path)
        self.device = torch.device(device)
        self.chunk = min(chunk or window, window)
        arch = CPU if self.device.type == "cpu" else detect_target().arch
        profile = Profile(max_batch_size=1, max_num_tokens=self.chunk, max_seq_len=window, page_size=PAGE_SIZE)

        quant = plan_for(source.path, precision, kv_dtype, arches=(arch,), context_attention=context_attention)

        def compiled(arches: tuple[str, ...], marked: Sequence[str]) -> Compiled:
            description = self.weights.description
            return compile_model(
                source.config, quant, profile, arches=arches, weights_source=description, mark_outputs=marked, every_row=True
            )

        self.marked = tuple(dict.fromkeys(marks(compiled((CPU,), ()).plan)))
        made = compiled((arch,), self.marked)
        self.plan = made.plan
        check_weights(self.weights, self.plan)
        self.tensors: dict[str, Tensor] = {name: tensor.to(self.device) for name, tensor in made.constants.items()}
        for done, name in enumerate(self.plan.weights, start=1):
            self.tensors[name] = assemble(self.plan, name, self.weights, self.device)
            if progress is not None:
                progress("weights", done, len(self.plan.weights))
        pages = profile.max_pages_per_seq + RESERVED_PAGES
        self._runner: Any = CpuRunner(self.plan, self.tensors, pages) if arch == CPU else self._cuda_runner(arch, pages, progress)

    def _cuda_runner(self, arch: str, pages: int, progress: Progress | None) -> Any:
        from trtllm_engines.runtime.cuda import CudaRunner
        from trtllm_kernels.compile.aot import compile_all

        specs = [kernel for op in self.plan.ops for kernel in op.tactics[arch].kernels]
        cubins = compile_all(specs, arch, lambda done, total: progress("kernels", done, total) if progress else None)
        return CudaRunner(self.plan, arch, self.tensors, cubins.__getitem__, num_pages=pages, cuda_graphs=False)

    def run(self, ids: IntArray) -> Iterator[dict[str, Tensor]]:
        """Marked values [tokens of the chunk, ...] of each chunk of `ids`; valid until the next is asked for."""
        for first in range(0, len(ids), self.chunk):
            part = ids[first : first + self.chunk]
            batch = StepBatch(
                slots=np.zeros(1, np.int32),
                query_lens=np.array([len(part)], np.int32),
                kv_lens=np.array([first + len(part)], np.int32),
                num_decodes=0,
                context_tokens=np.ascontiguousarray(part, np.int32),
                sampled=np.zeros(1, np.bool_),
                page_updates=_pages(first, first + len(part)),
            )
            self._runner.launch(batch).result()
            outputs = self._runner.outputs
            yield {name: outputs[name] for name in self.marked}


def _pages(first: int, end: int) -> IntArray:
    """Block-table entries of slot 0 that tokens [first, end) are the first to need."""
    index = np.arange(-(-first // PAGE_SIZE), -(-end // PAGE_SIZE), dtype=np.int32)
    return np.stack((np.zeros_like(index), index, index + RESERVED_PAGES), axis=1)
