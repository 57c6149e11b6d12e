"""The Python API: an engine, its runtime and its tokenizer behind `generate`, `stream` and `generate_async`.

    from trtllm_engines import LLM, SamplingParams

    llm = LLM("smollm2-135m", weights="models/smollm2")
    for output in llm.generate(["The capital of France is", "Two plus two is"], SamplingParams(max_tokens=16)):
        print(output.text)

Given a model, an engine is built into the cache first; given an engine folder, it is loaded. The engine loop runs on a thread of its
own, so any number of callers may generate and stream at once and share the batch. A request that cannot run has `error` set in its output;
what is wrong with the call itself raises.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from trtllm_engines.checkpoints.checkpoint_precision import default_precision
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.compiler.fingerprint import CPU, DetectedDevice, detect_target
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.build import Progress, default_profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.checksums import Verify
from trtllm_engines.engine.folder import PLAN, load_engine
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.precision import canonical
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.batch import IntArray, TokenLogprobs
from trtllm_engines.runtime.engine_loop import EngineLoop, EngineThread
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.hosts import Hosts, hosts_at
from trtllm_engines.runtime.rank import CacheSize
from trtllm_engines.runtime.ranks import Ranks, start_ranks
from trtllm_engines.runtime.request import FinishReason, Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import Policy, SchedulerConfig

Prompt = str | Sequence[int] | IntArray
ELSEWHERE = {
    "dtype": "use precision",
    "quantization": "use precision",
    "kv_cache_dtype": "use kv_dtype",
    "tensor_parallel_size": "use tp",
    "pipeline_parallel_size": "use pp",
    "gpu_memory_utilization": "use kv_cache_fraction, of the memory that is left after weights",
    "max_model_len": "use max_seq_len",
    "max_num_seqs": "use max_batch_size",
    "max_num_batched_tokens": "use max_num_tokens",
    "tokenizer": "the model folder's own is used",
    "trust_remote_code": "no code of a checkpoint is ever run, so leave it out",
    "enforce_eager": "use cuda_graphs=False",
    "backend": "there is one engine; leave it out",
    "kv_cache_config": "use kv_cache_fraction, num_pages and kv_dtype",
    "build_config": "use max_batch_size, max_num_tokens and max_seq_len",
    "model": "the model or engine folder is the first argument",
}
"""Options of other engines' LLM class (vLLM, TensorRT-LLM), and what they are here."""


@dataclass(frozen=True)
class RequestOutput:
    """Times in seconds of `time.perf_counter`. `token_ids` [n] includes the end-of-sequence token when it met one."""

    request_id: int
    prompt_token_ids: IntArray
    token_ids: IntArray
    text: str
    finish_reason: FinishReason
    error: str | None
    logprobs: list[TokenLogprobs]
    arrival_s: float
    scheduled_s: float | None
    first_token_s: float | None
    finished_s: float | None
    token_times_s: npt.NDArray[np.float64]
    preemptions: int
    index: int = 0
    """Which of the `n` answers to its prompt it is."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream: a token, the text it completes (perhaps none yet), and on the last piece the whole result."""

    text: str
    token_ids: tuple[int, ...]
    output: RequestOutput | None = None


class LLM:
    def __init__(
        self,
        model_or_engine_dir: str | Path,
        *,
        precision: str | None = None,
        kv_dtype: str = "auto",
        context_attention: str = WIDE,
        weights: str | Path = "auto",
        seed: int = 0,
        max_batch_size: int | None = None,
        max_num_tokens: int | None = None,
        max_seq_len: int | None = None,
        device: str = "auto",
        kv_cache_fraction: float = 0.9,
        num_pages: int | None = None,
        policy: Policy = "guaranteed_no_evict",
        overlap: bool = True,
        cuda_graphs: bool = True,
        tp: int | None = None,
        pp: int | None = None,
        replica: int | None = None,
        nnodes: int = 1,
        rdzv_endpoint: str | None = None,
        recorder: Recorder = "none",
        detail: str = "off",
        check_logits: bool = False,
        verify: Verify = "once",
        progress: Progress | None = None,
        **other: Any,
    ) -> None:
        """`device`: `auto` (a GPU when there is one), `cuda` or `cpu`. `precision` defaults to `default_precision`;
        `kv_dtype` is the cache's (`auto`: fp8 in an fp8 engine, else the activations'), `context_attention` what attention of prompts
        multiplies (`wide`, or `fp8` with an fp8 cache).

        `tp` is the number of tensor-parallel GPUs and `pp` that of pipeline stages (1 where none is given and no engine
        folder says another). `replica` is this engine's number among copies that run side by side: its ranks are then processes, on the
        GPUs after those of the copies before it. `nnodes` hosts run the ranks, each as many; the others join this process at
        `rdzv_endpoint`, HOST:PORT of an address of this host (`trtllm-bench host`), and find the engine under the same path. `recorder`:
        what ranks that are processes record their steps with when they are asked to; `detail`: of the NVTX ranges that they make themselves
        (`runtime.ranges`).

        `check_logits`: on a GPU, look at the logits of every step and stop where they are not numbers (a CPU always does); a pass over
        them, so it is off where time is measured. `verify`: which of the engine's files are hashed (`engine.checksums`).

        `overlap` applies to a GPU (a CPU computes while launching, so there is nothing to overlap). With an engine folder the three sizes
        may be less than the engine's profile, not more. `num_pages` fixes the KV cache's size instead of `kv_cache_fraction`.
        Raises `EngineError`, also for an option of another engine, saying what it is here.
        """
        for name in other:
            raise EngineError(f"LLM has no option {name}; {ELSEWHERE.get(name, 'see docs/python-api.md for those there are')}")
        if not 0 < kv_cache_fraction <= 1:
            raise EngineError(f"kv_cache_fraction must lie in (0, 1], not {kv_cache_fraction}")
        target = _target(device)
        sizes = {"max_batch_size": max_batch_size, "max_num_tokens": max_num_tokens, "max_seq_len": max_seq_len}
        requested = {name: size for name, size in sizes.items() if size is not None}
        path = Path(model_or_engine_dir)
        if not (path / PLAN).is_file():
            precision = canonical(precision) if precision else default_precision(model_or_engine_dir, target is not None)
            arches = (CPU if target is None else target.arch,)
            default = default_profile(resolve_model(model_or_engine_dir).config, requested)
            path = cached_engine(
                model_or_engine_dir,
                precision,
                kv_dtype=kv_dtype,
                context_attention=context_attention,
                weights=weights,
                seed=seed,
                profile=default,
                arches=arches,
                layout=ParallelLayout(tp or 1, pp or 1, nnodes),
                gpu="" if target is None else target.name,
                progress=progress,
            )
        elif precision is not None or kv_dtype != "auto" or context_attention != WIDE or str(weights) != "auto":
            raise EngineError(f"{path} is a built engine, whose types and weights are fixed; give the model instead to build another")
        self.engine = load_engine(path, target, verify, progress)
        self.plan = self.engine.plan
        self.engine.check_layout(tp, pp)
        profile = _within(self.plan.profile, requested, str(path))
        self._runner = start_ranks(
            self.engine,
            CacheSize(kv_cache_fraction, num_pages),
            cuda_graphs=cuda_graphs,
            max_graph_batch=profile.max_batch_size,
            progress=progress or (lambda stage, done, total: None),
            replica=replica,
            check_logits=check_logits,
            hosts=_hosts(nnodes, rdzv_endpoint),
            recorder=recorder,
            detail=detail,
        )
        self.tokenizer: Tokenizer | None = self.engine.tokenizer
        pages, stages = self._runner.num_pages, self.plan.parallel.pp
        self.loop = EngineLoop(
            self._runner,
            SchedulerConfig(profile.max_batch_size, profile.max_num_tokens, profile.max_seq_len, profile.page_size, pages, policy, stages),
            vocab_size=self.plan.config.vocab_size,
            eos_ids=self.plan.config.eos_token_ids,
            overlap=overlap and self.engine.arch != CPU,
            detokenizer=None if self.tokenizer is None else self.tokenizer.detokenizer,
        )
        self._thread: EngineThread | None = None

    # --- generating ---

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """One output per prompt, in order, or `n` of each, one after another (`index` says which). A prompt is text or token ids; a single
        one may be given without a list.

        What cannot run at all raises `EngineError`; a request that cannot be served has `error` set in its output, and the others run.
        """
        prompt_list = _as_list(prompts)
        params = self._params(sampling_params, len(prompt_list))
        answers = [
            (index, ids, one)
            for prompt, several in zip(prompt_list, params, strict=True)
            for ids in [self.encode(prompt)]
            for index, one in enumerate(_one_by_one(self._in_tokens(several)))
        ]
        finished = threading.Semaphore(0)
        self.start()
        requests = [self.loop.add_request(ids, one, on_finish=lambda _: finished.release()) for _, ids, one in answers]
        try:
            for _ in requests:
                finished.acquire()
        except BaseException:
            for request in requests:
                self.loop.cancel(request)
            raise
        return [replace(self._output(request), index=index) for (index, _, _), request in zip(answers, requests, strict=True)]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Chunks as tokens come; the last one holds the output. Closing the iterator cancels the request."""
        chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        request = self._submit_stream(prompt, sampling_params, chunks.put)
        try:
            while True:
                chunk = chunks.get()
                yield chunk
                if chunk.output is not None:
                    return
        finally:
            self.loop.cancel(request)

    async def generate_async(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncIterator[Chunk]:
        """`stream` for asyncio."""
        import asyncio

        running = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        request = self._submit_stream(prompt, sampling_params, lambda chunk: running.call_soon_threadsafe(chunks.put_nowait, chunk))
        try:
            while True:
                chunk = await chunks.get()
                yield chunk
                if chunk.output is not None:
                    return
        finally:
            self.loop.cancel(request)

    def chat(self, messages: Sequence[Mapping[str, str]], sampling_params: SamplingParams | None = None) -> RequestOutput:
        """One answer to a conversation, through the model's chat template."""
        _need_one(sampling_params)
        return self.generate(self._need_tokenizer().encode_chat(messages), sampling_params)[0]

    def encode(self, prompt: Prompt) -> Sequence[int] | IntArray:
        return self._need_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt

    @property
    def ranks(self) -> Ranks:
        """What runs the steps. The loop feeds it; others may while the loop is idle."""
        return self._runner

    # --- the loop's thread ---

    def start(self) -> None:
        """Starts the engine's thread; `generate` and the streams do so themselves."""
        if self._thread is None:
            self._thread = EngineThread(self.loop)

    def close(self) -> None:
        """Stops the thread and ranks that are processes; requests still running stay unfinished."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            try:
                thread.close()
            finally:
                self._runner.close()
        else:
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _submit_stream(self, prompt: Prompt, sampling_params: SamplingParams | None, put: Any) -> Request:
        _need_one(sampling_params)
        params = self._in_tokens(sampling_params or SamplingParams())
        stream = _TextStream(self.tokenizer, params)
        ids = self.encode(prompt)
        self.start()
        return self.loop.add_request(
            ids,
            params,
            on_token=lambda request, token, time_s: put(Chunk(stream.add(request, token), (token,))),
            on_finish=lambda request: put(Chunk(stream.finish(request), (), self._output(request))),
        )

    def _output(self, request: Request) -> RequestOutput:
        assert request.finish_reason is not None
        return RequestOutput(
            request_id=request.request_id,
            prompt_token_ids=request.prompt,
            token_ids=request.output,
            text=_final_text(self.tokenizer, request),
            finish_reason=request.finish_reason,
            error=request.error,
            logprobs=request.logprobs,
            arrival_s=request.arrival_s,
            scheduled_s=request.scheduled_s,
            first_token_s=request.first_token_s,
            finished_s=request.finished_s,
            token_times_s=request.token_times_s,
            preemptions=request.preemptions,
        )

    def _params(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or SamplingParams()] * count
        if len(given) != count:
            raise EngineError(f"{count} prompts came with {len(given)} sampling parameters; give one for all or one for each")
        return list(given)

    def _in_tokens(self, params: SamplingParams) -> SamplingParams:
        """With bad words that are texts as the tokens they are made of, with and without a space before them."""
        if not any(isinstance(word, str) for word in params.bad_words):
            return params
        tokenizer, words = self._need_tokenizer("give bad_words as lists of token ids"), []
        for word in params.bad_words:
            texts = dict.fromkeys([word, " " + word.lstrip()]) if isinstance(word, str) else ()
            words += [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
            words += [] if isinstance(word, str) else [tuple(word)]
        return replace(params, bad_words=tuple(dict.fromkeys(word for word in words if word)))

    def _need_tokenizer(self, instead: str = "give prompts as token ids") -> Tokenizer:
        if self.tokenizer is None:
            raise EngineError(f"engine {self.engine.path} has no tokenizer; {instead}")
        return self.tokenizer


def _hosts(nnodes: int, rdzv_endpoint: str | None) -> Hosts | None:
    if nnodes == 1:
        if rdzv_endpoint is not None:
            raise EngineError("--rdzv-endpoint is where other hosts join; give --nnodes too, how many hosts there are")
        return None
    if rdzv_endpoint is None:
        raise EngineError(f"--nnodes is {nnodes}, and other hosts need to know where to join; give --rdzv-endpoint HOST:PORT of this host")
    return hosts_at(rdzv_endpoint, nnodes)


class _TextStream:
    """Text of a stream, holding back what may turn out to be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer()
        self._hold = max((len(stop) for stop in params.stop), default=1) - 1
        self._text = ""
        self._sent = 0

    def add(self, request: Request, token: int) -> str:
        if self._detokenizer is None:
            return ""
        self._text += self._detokenizer.add([token])
        return self._send(len(self._text) - self._hold if request.stop_at is None else request.stop_at)

    def finish(self, request: Request) -> str:
        self._text = _final_text(self._tokenizer, request)
        return self._send(len(self._text))

    def _send(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _final_text(tokenizer: Tokenizer | None, request: Request) -> str:
    """All text generated, cut before the stop string that ended it."""
    if tokenizer is None:
        return ""
    text = tokenizer.decode(request.output.tolist())
    return text[: request.stop_at]


def _one_by_one(params: SamplingParams) -> list[SamplingParams]:
    """For each of `n` answers its own: seeds count up from the one given."""
    if params.n == 1:
        return [params]
    seeds = [None if params.seed is None else (params.seed + index) % 2**63 for index in range(params.n)]
    return [replace(params, n=1, seed=seed) for seed in seeds]


def _need_one(params: SamplingParams | None) -> None:
    if params is not None and params.n != 1:
        raise EngineError(f"n is {params.n}, and a stream or a chat has one answer; LLM.generate gives several")


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (isinstance(prompts, np.ndarray) and prompts.ndim == 1):
        return [prompts]
    if len(prompts) and isinstance(prompts[0], int | np.integer):
        return [cast(Prompt, prompts)]
    return [cast(Prompt, prompt) for prompt in prompts]


def _target(device: str) -> DetectedDevice | None:
    """The GPU to run on; None for the CPU."""
    if device not in ("auto", "cuda", "cpu"):
        raise EngineError(f"unknown device {device!r}; choose auto, cuda or cpu")
    return detect_target() if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else None


def _within(profile: Profile, requested: Mapping[str, int], path: str) -> Profile:
    for name, size in requested.items():
        limit = getattr(profile, name)
        if size > limit:
            raise EngineError(f"{name} {size} is more than the {limit} engine {path} was built for; ask for less, or build it larger")
    return replace(profile, **requested)
