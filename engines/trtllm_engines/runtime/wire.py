"""A `StepBatch` as bytes and back: what a rank in another process or on another host is told of a step.

    header     nine little-endian int32: magic, R, D, T - D, U, starts, words of JSON, words of tokens, and the number of bytes in all
    arrays     int32: slots [R], kv_lens [R], query_lens [R - D], sampled [R - D], context_tokens [T - D], page_updates [U, 3]
    starts     JSON, filled up to whole words with blanks, then their prompts and outputs as int32
    last       int32: decode_tokens [D], where there are any; the number of bytes says so

Decode sequences have one token each and are all sampled, so their rows of `query_lens` and `sampled` are not sent. Sequences that take a
slot are few in a step; of their sampling parameters only those that are not the defaults are sent. A decode step of 2,048 sequences is 17
kB and takes 6 us to write and 18 us to read on one of two shared cores of an AMD EPYC; each sequence that takes a slot adds 8 and 20 us.
Rejected: pickle (28 kB, 31 and 26 us), which runs what it is sent, and depends on the Python at either end.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import fields
from typing import Any

import numpy as np

from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import IntArray, SlotStart, StepBatch, StepOutput, TokenLogprobs
from trtllm_engines.runtime.sampling_params import SamplingParams

MAGIC = int.from_bytes(b"STP1", "little")
_START_BYTES = 8192
"""Room for the sampling parameters of a sequence that starts, which `sampling_params` bounds."""
_LOGPROBS_BYTES = 1024
"""Room for the log-probabilities of a row."""
_HEADER = struct.Struct("<9i")
_DEFAULTS = {field.name: field.default for field in fields(SamplingParams)}


def encode(batch: StepBatch) -> bytes:
    decodes = batch.num_decodes
    prefix, tokens = _encode_starts(batch.starts)
    context = batch.num_seqs - decodes
    counts = (batch.num_seqs, decodes, len(batch.context_tokens), len(batch.page_updates))
    last = () if batch.decode_tokens is None else (batch.decode_tokens,)
    words = 2 * counts[0] + 2 * context + counts[2] + 3 * counts[3] + len(prefix) // 4 + sum(map(len, (*tokens, *last)))
    header = _HEADER.pack(MAGIC, *counts, len(batch.starts), len(prefix) // 4, sum(map(len, tokens)), _HEADER.size + 4 * words)
    arrays = (
        batch.slots,
        batch.kv_lens,
        batch.query_lens[decodes:],
        batch.sampled[decodes:],
        batch.context_tokens,
        batch.page_updates,
    )
    return b"".join((header, *(_int32(array) for array in arrays), prefix, *(_int32(array) for array in (*tokens, *last))))


def decode(data: bytes | bytearray | memoryview) -> StepBatch:
    """Inverse of `encode`; the arrays are copies. Raises `EngineError` when `data` is not a whole step of this version."""
    if len(data) < _HEADER.size:
        raise EngineError(f"a step message of {len(data)} bytes is shorter than its header of {_HEADER.size}")
    magic, seqs, decodes, tokens, updates, starts, json_words, start_tokens, size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise EngineError("a step message does not begin as this release writes it; run the same release on every rank")
    if size != len(data):
        raise EngineError(f"a step message has {len(data)} bytes and says that it has {size}")
    words = np.frombuffer(data, "<i4", offset=_HEADER.size).astype(np.int32)
    ends = list(itertools.accumulate((seqs, seqs, seqs - decodes, seqs - decodes, tokens, 3 * updates, json_words, start_tokens)))
    parts = [words[begin:end] for begin, end in zip((0, *ends), (*ends, len(words)), strict=True)]
    slots, kv_lens, query_lens, sampled, context_tokens, page_updates, prefix, history, last = parts
    return StepBatch(
        slots=slots,
        query_lens=np.concatenate((np.ones(decodes, np.int32), query_lens)),
        kv_lens=kv_lens,
        num_decodes=decodes,
        context_tokens=context_tokens,
        sampled=np.concatenate((np.ones(decodes, np.bool_), sampled.astype(np.bool_))),
        page_updates=page_updates.reshape(updates, 3),
        starts=_decode_starts(prefix, history) if starts else (),
        decode_tokens=last if len(last) else None,
    )


def _int32(array: Any) -> bytes:
    return np.ascontiguousarray(array, "<i4").tobytes()


def _encode_starts(starts: tuple[SlotStart, ...]) -> tuple[bytes, list[IntArray]]:
    """JSON in whole words, and the arrays of token ids that follow it."""
    if not starts:
        return b"", []
    described = [
        {
            "slot": start.slot,
            "seed": start.seed,
            "stop_ids": start.stop_ids,
            "lengths": (len(start.prompt), len(start.output)),
            "sampling": {name: value for name, value in vars(start.sampling).items() if value != _DEFAULTS[name]},
        }
        for start in starts
    ]
    text = json.dumps(described, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // 4) * 4), [array for start in starts for array in (start.prompt, start.output)]


def _decode_starts(prefix: IntArray, history: IntArray) -> tuple[SlotStart, ...]:
    starts, at = [], 0
    for described in json.loads(prefix.astype("<i4").tobytes()):
        prompt, output = described["lengths"]
        starts.append(
            SlotStart(
                slot=described["slot"],
                prompt=history[at : at + prompt],
                output=history[at + prompt : at + prompt + output],
                sampling=SamplingParams(**described["sampling"]),
                seed=described["seed"],
                stop_ids=tuple(described["stop_ids"]),
            )
        )
        at += prompt + output
    return tuple(starts)


_OUTPUT = struct.Struct("<2i")


def encode_output(output: StepOutput) -> bytes:
    """Tokens, and log-probabilities as JSON where there are any."""
    logprobs = b""
    if output.logprobs is not None:
        described = [None if one is None else (one.chosen, list(one.top.items())) for one in output.logprobs]
        logprobs = json.dumps(described, separators=(",", ":")).encode()
    return b"".join((_OUTPUT.pack(len(output.tokens), len(logprobs)), _int32(output.tokens), logprobs))


def decode_output(data: bytes) -> StepOutput:
    """Inverse of `encode_output`."""
    count, size = _OUTPUT.unpack_from(data)
    tokens = np.frombuffer(data, "<i4", count, _OUTPUT.size).astype(np.int32)
    if not size:
        return StepOutput(tokens)
    described = json.loads(data[_OUTPUT.size + 4 * count :])
    logprobs = [None if one is None else TokenLogprobs(one[0], {int(token): value for token, value in one[1]}) for one in described]
    return StepOutput(tokens, logprobs)


def most_bytes(profile: Profile) -> tuple[int, int]:
    """Bytes of the largest step an engine of these ranges can be sent, and of what comes back of it.

    A step starts at most all its sequences, each with its tokens so far.
    """
    sequences, tokens = profile.max_batch_size, profile.max_num_tokens
    history = sequences * profile.max_seq_len
    pages = sequences * profile.max_pages_per_seq
    step = _HEADER.size + 4 * (5 * sequences + tokens + 3 * pages + history) + sequences * _START_BYTES
    return step, _OUTPUT.size + sequences * (4 + _LOGPROBS_BYTES)
