"""A step's integers on their way to the device: one pinned buffer, one copy, fixed device addresses.

Kernels and CUDA graphs are bound to addresses once, so every step's inputs land in the same place, in one transfer: a batch is a few
dozen kilobytes, and eight small copies would cost more CPU time than the largest kernel launch sequence of a layer. Pinned buffers
rotate: a buffer is written again only when the step that used it has been read back. 64-bit sections come first (alignment),
the longest last, so that a decode step copies a prefix.

On a GPU a kernel copies, and reads the host's memory itself: between kernels, the copy engine's copy takes a step 5 us longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trtllm_engines.compiler.plan import RING_SLOTS, Profile
from trtllm_engines.runtime.batch import IntArray, StepBatch
from trtllm_kernels.dialect.types import SAMPLING_WORDS, rounded_keys


@dataclass(frozen=True)
class StepSizes:
    """The launch symbols of a step, and what the sampler needs to know on the host."""

    num_tokens: int
    num_seqs: int
    num_decodes: int
    num_samples: int
    longest: int
    num_updates: int
    num_continued: int
    """Context sequences with tokens in the cache from earlier steps."""
    longest_decode: int = 0
    """Keys of the longest decode sequence."""

    @property
    def symbols(self) -> dict[str, int]:
        sizes = {"T": self.num_tokens, "R": self.num_seqs, "D": self.num_decodes, "S": self.num_samples}
        return {**sizes, "C": self.num_continued, "L": rounded_keys(self.longest_decode)}


class StepInputs:
    """`tensors` names device views of full capacity; the step's own lengths are in `StepSizes`."""

    def __init__(self, profile: Profile, device: torch.device | str, ring_slots: int = RING_SLOTS) -> None:
        self.device = torch.device(device)
        self._profile = profile
        self.padding_slot = profile.max_batch_size
        rows, tokens = profile.max_batch_size, profile.max_num_tokens
        updates = -(-tokens // profile.page_size) + rows
        sections: list[tuple[str, type[np.generic], int]] = [
            ("update_index", np.int64, updates),
            ("update_pages", np.int32, updates),
            ("seq_slots", np.int32, rows),
            ("query_start", np.int32, rows + 1),
            ("kv_lens", np.int32, rows),
            ("logit_rows", np.int32, rows),
            ("sample_slots", np.int32, rows),
            ("sampling_words", np.int32, SAMPLING_WORDS * rows),
            ("ring_slot", np.int32, 1),
            ("context_tokens", np.int32, tokens),
        ]
        offsets: dict[str, tuple[int, int, type[np.generic]]] = {}
        end = 0
        for name, dtype, count in sections:
            nbytes = count * np.dtype(dtype).itemsize
            offsets[name] = (end, end + nbytes, dtype)
            end += -(-nbytes // 16) * 16
        self._tokens_at = offsets["context_tokens"][0]
        on_gpu = self.device.type == "cuda"
        buffers = [torch.zeros(end, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(ring_slots)]
        self._device = torch.zeros(end, dtype=torch.uint8, device=self.device)
        self._host_buffers = buffers
        self._words = self._device.view(torch.int32)
        self._mapped = [_mapped(buffer, self._device.device) if on_gpu else None for buffer in buffers]
        self._hosts = [{n: _shaped(n, b.numpy()[lo:hi].view(dtype)) for n, (lo, hi, dtype) in offsets.items()} for b in buffers]
        torch_types = {np.int64: torch.int64, np.int32: torch.int32}
        self.tensors: Mapping[str, torch.Tensor] = {
            n: _shaped(n, self._device[lo:hi].view(torch_types[dtype])) for n, (lo, hi, dtype) in offsets.items()
        }
        self.ring_slot = 0
        """Of the last step uploaded."""
        self._iota = np.arange(rows + 1, dtype=np.int32)

    def upload(self, batch: StepBatch, sampling_words: IntArray, padded_seqs: int | None = None) -> StepSizes:
        """Packs and copies one step. sampling_words [max_batch_size + 1, 3] holds each slot's temperature and seed, with which the plan's
        `sampling_words` begin. `padded_seqs` fills a decode-only step up to a CUDA graph's batch size."""
        self.ring_slot = (self.ring_slot + 1) % len(self._hosts)
        host = self._hosts[self.ring_slot]
        pad = 0 if padded_seqs is None else padded_seqs - batch.num_seqs
        sizes = self._pack(host, batch, sampling_words, pad)
        host["ring_slot"][0] = self.ring_slot
        words = self._tokens_at // 4 + sizes.num_tokens
        mapped = self._mapped[self.ring_slot]
        if mapped is None:
            self._words[:words].copy_(self._host_buffers[self.ring_slot].view(torch.int32)[:words], non_blocking=True)
        else:
            torch.bitwise_or(mapped[:words], 0, out=self._words[:words])
        return sizes

    def _pack(self, host: dict[str, npt.NDArray[np.generic]], batch: StepBatch, sampling_words: IntArray, pad: int) -> StepSizes:
        seqs, decodes = batch.num_seqs, batch.num_decodes
        tokens = batch.num_tokens
        host["seq_slots"][:seqs] = batch.slots
        host["kv_lens"][:seqs] = batch.kv_lens
        host["context_tokens"][:decodes] = -1 if batch.decode_tokens is None else batch.decode_tokens
        if seqs == decodes:
            host["query_start"][: seqs + pad + 1] = self._iota[: seqs + pad + 1]
            host["logit_rows"][: seqs + pad] = self._iota[: seqs + pad]
            slots, positions = batch.slots, batch.kv_lens
        else:
            ends = np.cumsum(batch.query_lens, dtype=np.int32)
            host["query_start"][0] = 0
            host["query_start"][1 : seqs + 1] = ends
            host["context_tokens"][decodes:tokens] = batch.context_tokens
            slots, positions = batch.slots[batch.sampled], batch.kv_lens[batch.sampled]
            host["logit_rows"][: len(slots)] = ends[batch.sampled] - 1
        samples = len(slots)
        host["sample_slots"][:samples] = slots
        host["sampling_words"][:samples, :-1] = sampling_words[slots]
        host["sampling_words"][:samples, -1] = positions
        if pad:
            host["seq_slots"][seqs : seqs + pad] = self.padding_slot
            host["sample_slots"][seqs : seqs + pad] = self.padding_slot
            host["kv_lens"][seqs : seqs + pad] = 1
            host["sampling_words"][seqs : seqs + pad] = 0
            host["context_tokens"][seqs : seqs + pad] = -1
        updates = len(batch.page_updates)
        if updates:
            slot, index, page = batch.page_updates.T
            host["update_index"][:updates] = slot.astype(np.int64) * self._profile.max_pages_per_seq + index
            host["update_pages"][:updates] = page
        longest, longest_decode = int(batch.kv_lens.max(initial=1)), int(batch.kv_lens[:decodes].max(initial=min(1, pad)))
        continued = int(np.count_nonzero(batch.kv_lens[decodes:] > batch.query_lens[decodes:]))
        return StepSizes(tokens + pad, seqs + pad, decodes + pad, samples + pad, longest, updates, continued, longest_decode)


class _Pinned:
    """The host's memory for `torch.as_tensor`: pinned, it has one address for host and device."""

    def __init__(self, host: torch.Tensor) -> None:
        self._host = host
        words = host.numel() // 4
        self.__cuda_array_interface__ = {"version": 3, "shape": (words,), "typestr": "<i4", "data": (host.data_ptr(), False)}


def _mapped(host: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """Pinned memory as an int32 tensor that kernels of `device` read in place; None where the driver has it as another device's."""
    from cuda.bindings import driver

    of = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, index = driver.cuPointerGetAttribute(of, host.data_ptr())
    if error != driver.CUresult.CUDA_SUCCESS or index != device.index:
        return None
    mapped = torch.as_tensor(_Pinned(host), device=device)
    return mapped if mapped.data_ptr() == host.data_ptr() else None


def _shaped(name: str, flat: Any) -> Any:
    return flat.reshape(-1, SAMPLING_WORDS) if name == "sampling_words" else flat
