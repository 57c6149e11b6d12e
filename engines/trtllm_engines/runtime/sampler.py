"""From logits to tokens, on the device, without a sync: penalties, temperature, top-k, top-p, min-p, Gumbel noise, arg-max.

Order and definitions (z are logits): 1. `logit_bias` is added. `min_tokens`: stop tokens get -inf until so many tokens exist.
`bad_words`: the last token of one gets -inf where those before it are the sequence's last. 2. Repetition penalty over prompt
and output (Keskar et al., CTRL, 2019): z / r where z > 0, else z * r. Frequency and presence penalties over the output: z - f * count - p
* (count > 0). 3. z / temperature. Temperature 0 takes the arg-max from here and ignores the rest. 4. top-k keeps the k largest; top-p
then keeps the fewest whose probability, renormalised, reaches p; min-p keeps those with at least min_p times the largest probability. 5.
The arg-max of z + Gumbel noise is a draw from softmax(z) (no normalisation, no cumulative sum, no host).

A step pays for what its sequences use: all greedy is one arg-max; the filters' sort runs only when someone asked. Parameters live in a
row a slot; the host keeps a mirror and uploads rows that change, so a stream of default requests uploads nothing. Rejected: token counts
[slots, vocabulary] for the penalties (1 GB at 2,048 x 128k); a history of tokens is kept instead, only once someone uses penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trtllm_engines.runtime.batch import SlotStart, TokenLogprobs
from trtllm_kernels.dialect.types import SAMPLING_WORDS
from trtllm_kernels.references.philox import gumbel_noise

RANDOM, PENALTY, SORT, MIN_P, FORBID, LOGPROBS, BIAS, BAD_WORDS = 1, 2, 4, 8, 16, 32, 64, 128
NEEDS_HISTORY = PENALTY | BAD_WORDS
IN_PLAN = RANDOM
"""A step that asks for nothing beyond these bits is sampled by the plan's last op."""
CHUNK_ELEMENTS = 1 << 24
"""Logits filtered at once: bounds the temporaries of the sort and the noise to some 400 MB."""

TEMPERATURE, TOP_P, MIN_P_VALUE, REPETITION, PRESENCE, FREQUENCY = range(6)
SEED, TOP_K, PROMPT_LEN, MIN_LEN = range(4)
NO_TOKEN, BEFORE_ALL = -1, -2
"""In a table of bad words: nothing stands here. In a sequence: the place before its first token."""
DEFAULT_FLOATS = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Sampled:
    """`tokens` int32 [S]. `logprobs`, when asked for: the chosen token's [S], the n highest [S, n], and the ids of those [S, n]."""

    tokens: torch.Tensor
    logprobs: tuple[torch.Tensor, ...] = ()


class Sampler:
    """`num_slots` counts padding's, the last one, which is greedy."""

    def __init__(self, num_slots: int, max_seq_len: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._max_seq_len = max_seq_len
        self._flags = np.zeros(num_slots, np.uint8)
        self._num_logprobs = np.zeros(num_slots, np.int32)
        self._host_floats = np.tile(np.array(DEFAULT_FLOATS, np.float32), (num_slots, 1))
        self._host_ints = np.zeros((num_slots, 4), np.int64)
        self._floats = torch.from_numpy(self._host_floats).to(self.device, copy=True)
        self._ints = torch.from_numpy(self._host_ints).to(self.device, copy=True)
        self.sampling_words = np.zeros((num_slots, SAMPLING_WORDS - 1), np.int32)
        """[num_slots, 3] temperature and seed of each slot, as a row of the plan's `sampling_words` begins."""
        self._default = set(range(num_slots))
        """Slots whose row holds the defaults already."""
        self._stops: torch.Tensor | None = None
        self._history: torch.Tensor | None = None
        self._biases: torch.Tensor | None = None
        """[num_slots, n, 2] token ids and biases; a bias of 0 fills up."""
        self._bad: torch.Tensor | None = None
        """[num_slots, n, longest] bad words, at the right; NO_TOKEN before them, and in place of whole words that fill up."""

    # --- what the host decides ---

    def start(self, starts: Sequence[SlotStart]) -> None:
        """Takes over the parameters of sequences that get their slots in this step."""
        changed = [start.slot for start in starts if self._adopt(start)]
        if changed:
            rows = self._upload(np.array(changed, np.int64))
            self._floats.index_copy_(0, rows, self._upload(self._host_floats[changed]))
            self._ints.index_copy_(0, rows, self._upload(self._host_ints[changed]))

    def flags(self, slots: npt.NDArray[np.integer]) -> int:
        """What sampling these slots takes, as bits."""
        return int(np.bitwise_or.reduce(self._flags[slots])) if len(slots) else 0

    def num_logprobs(self, slots: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """[S] number of most likely tokens wanted, -1 where none were asked for."""
        return np.where(self._flags[slots] & LOGPROBS, self._num_logprobs[slots], -1).astype(np.int32)

    def _adopt(self, start: SlotStart) -> bool:
        p, slot = start.sampling, start.slot
        wants = (
            (RANDOM, not p.greedy),
            (PENALTY, p.penalised),
            (SORT, not p.greedy and (p.top_k > 0 or p.top_p < 1)),
            (MIN_P, not p.greedy and p.min_p > 0),
            (FORBID, p.min_tokens > 0 and bool(start.stop_ids)),
            (LOGPROBS, p.logprobs is not None),
            (BIAS, bool(p.logit_bias)),
            (BAD_WORDS, bool(p.bad_words)),
        )
        flags = sum(bit for bit, asked in wants if asked)
        self._forget(slot, int(self._flags[slot]) & ~flags)
        self._flags[slot] = flags
        self._num_logprobs[slot] = p.logprobs or 0
        if not flags & ~LOGPROBS:
            if slot in self._default:
                return False
            self._default.add(slot)
            self._host_floats[slot], self._host_ints[slot], self.sampling_words[slot] = DEFAULT_FLOATS, 0, 0
            return True
        self._default.discard(slot)
        if flags & NEEDS_HISTORY:
            self._remember(start)
        if flags & FORBID:
            self._forbid(start)
        if flags & BIAS:
            self._biases = self._rows_with(self._biases, np.array(p.logit_bias, np.float64), slot, 0)
        if flags & BAD_WORDS:
            longest = max(len(word) for word in p.bad_words)
            words = [[NO_TOKEN] * (longest - len(word)) + list(word) for word in p.bad_words]
            self._bad = self._rows_with(self._bad, np.array(words, np.int64), slot, NO_TOKEN)
        self._host_floats[slot] = (p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
        self._host_ints[slot] = (start.seed, p.top_k, len(start.prompt), len(start.prompt) + p.min_tokens)
        self.sampling_words[slot, 0] = self._host_floats[slot, TEMPERATURE].view(np.int32)
        self.sampling_words[slot, 1:] = self._host_ints[slot, SEED : SEED + 1].view(np.int32)
        return True

    def _forget(self, slot: int, flags: int) -> None:
        """Empties the rows of what an earlier sequence in the slot asked for; a neighbour's asking would bring them back."""
        if flags & BIAS and self._biases is not None:
            self._biases[slot].fill_(0)
        if flags & BAD_WORDS and self._bad is not None:
            self._bad[slot].fill_(NO_TOKEN)

    def _remember(self, start: SlotStart) -> None:
        if self._history is None:
            self._history = torch.zeros((len(self._flags), self._max_seq_len), dtype=torch.int32, device=self.device)
        known = np.concatenate((start.prompt, start.output))
        self._history[start.slot, : len(known)].copy_(self._upload(known))

    def _forbid(self, start: SlotStart) -> None:
        """Rows are padded with their first entry: forbidding a token twice is harmless."""
        width = len(start.stop_ids)
        if self._stops is None:
            self._stops = torch.zeros((len(self._flags), width), dtype=torch.int64, device=self.device)
        missing = width - self._stops.shape[1]
        if missing > 0:
            self._stops = torch.cat((self._stops, self._stops[:, :1].expand(-1, missing)), dim=1)
        row = np.full(self._stops.shape[1], start.stop_ids[0], np.int64)
        row[:width] = start.stop_ids
        self._stops[start.slot].copy_(self._upload(row))

    def _rows_with(self, table: torch.Tensor | None, rows: npt.NDArray[Any], slot: int, filler: int) -> torch.Tensor:
        """A table [num_slots, n, width] in which `slot` has these rows [m, width], aligned right; it is made, or grown, to hold them."""
        count, width = rows.shape
        if table is not None:
            count, width = max(count, table.shape[1]), max(width, table.shape[2])
        if table is None or table.shape[1:] != (count, width):
            grown = torch.full((len(self._flags), count, width), filler, dtype=torch.from_numpy(rows).dtype, device=self.device)
            if table is not None:
                grown[:, : table.shape[1], width - table.shape[2] :] = table
            table = grown
        row = np.full((count, width), filler, rows.dtype)
        row[: len(rows), width - rows.shape[1] :] = rows
        table[slot].copy_(self._upload(row))
        return table

    def _upload(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array))
        return host if self.device.type == "cpu" else host.pin_memory().to(self.device, non_blocking=True)

    # --- what the device does ---

    def sample(
        self, flags: int, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, longest: int = 0, num_logprobs: int = 0
    ) -> Sampled:
        """logits [S, V]; slots int64 [S]; positions int64 [S]: tokens before the sampled one. `longest` bounds positions on the host."""
        if flags & ~LOGPROBS:
            rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
            pieces = [
                self._choose(flags, logits[at : at + rows], slots[at : at + rows], positions[at : at + rows], longest)
                for at in range(0, logits.shape[0], rows)
            ]
            tokens = torch.cat(pieces) if len(pieces) != 1 else pieces[0]
        else:
            tokens = logits.argmax(dim=-1)
        if flags & NEEDS_HISTORY and self._history is not None:
            self._history.index_put_((slots, positions), tokens.to(torch.int32))
        if not flags & LOGPROBS:
            return Sampled(tokens.to(torch.int32))
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        top, top_ids = logprobs.topk(num_logprobs, dim=-1)
        return Sampled(tokens.to(torch.int32), (logprobs.gather(1, tokens[:, None])[:, 0], top, top_ids))

    def _choose(self, flags: int, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, longest: int) -> torch.Tensor:
        floats, ints = self._floats.index_select(0, slots), self._ints.index_select(0, slots)
        z = logits.to(torch.float32, copy=True)
        if flags & BIAS:
            z = self._add_biases(z, slots)
        if flags & FORBID:
            z = self._mask_stops(z, slots, positions < ints[:, MIN_LEN])
        if flags & BAD_WORDS:
            z = self._mask_bad_words(z, slots, positions)
        if flags & PENALTY:
            z = self._penalise(z, slots, positions, floats, ints, longest)
        if not flags & RANDOM:
            return z.argmax(dim=-1)
        temperature = floats[:, TEMPERATURE, None]
        drawn = temperature > 0
        z /= torch.where(drawn, temperature, 1.0)
        kept = _truncate(z, floats, ints) if flags & SORT else None
        if flags & MIN_P:
            floor = z.amax(dim=-1, keepdim=True) + floats[:, MIN_P_VALUE, None].log()
            kept = z >= floor if kept is None else kept & (z >= floor)
        if kept is not None:
            z.masked_fill_(~kept, float("-inf"))
        z += torch.where(drawn, gumbel_noise(ints[:, SEED], positions, z.shape[1]), 0.0)
        return z.argmax(dim=-1)

    def _add_biases(self, z: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        assert self._biases is not None
        tokens, biases = self._biases.index_select(0, slots).unbind(-1)
        return z.scatter_add_(1, tokens.long(), biases.float())

    def _mask_bad_words(self, z: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert self._bad is not None
        assert self._history is not None
        words = self._bad.index_select(0, slots)
        last = words[:, :, -1]
        before = words.shape[2] - 1
        at = positions[:, None] - before + torch.arange(before, device=z.device)[None, :]
        latest = self._history.index_select(0, slots).gather(1, at.clamp_min(0)).long()
        met = (words[:, :, :-1] == torch.where(at < 0, BEFORE_ALL, latest)[:, None, :]) | (words[:, :, :-1] == NO_TOKEN)
        completed = met.all(dim=-1) & (last != NO_TOKEN)
        forbidden = torch.zeros_like(z).scatter_add_(1, last.clamp_min(0), completed.float())
        return z.masked_fill_(forbidden > 0, float("-inf"))

    def _mask_stops(self, z: torch.Tensor, slots: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
        assert self._stops is not None
        stops = self._stops.index_select(0, slots)
        return z.scatter(1, stops, torch.where(early[:, None], float("-inf"), z.gather(1, stops)))

    def _penalise(
        self, z: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, floats: torch.Tensor, ints: torch.Tensor, longest: int
    ) -> torch.Tensor:
        assert self._history is not None
        history = self._history[:, :longest].index_select(0, slots).long()
        at = torch.arange(history.shape[1], device=z.device)[None, :]
        known = at < positions[:, None]
        generated = known & (at >= ints[:, PROMPT_LEN, None])
        seen = torch.zeros_like(z).scatter_add_(1, history, known.float())
        count = torch.zeros_like(z).scatter_add_(1, history, generated.float())
        repetition = floats[:, REPETITION, None]
        z = torch.where(seen > 0, torch.where(z > 0, z / repetition, z * repetition), z)
        return z - floats[:, FREQUENCY, None] * count - floats[:, PRESENCE, None] * (count > 0)


def _truncate(z: torch.Tensor, floats: torch.Tensor, ints: torch.Tensor) -> torch.Tensor:
    """bool [S, V]: what top-k and top-p keep. The most likely token always stays."""
    ranked, ids = z.sort(dim=-1, descending=True, stable=True)
    top_k = ints[:, TOP_K, None]
    rank = torch.arange(z.shape[1], device=z.device)[None, :]
    kept = (rank < top_k) | (top_k == 0)
    probability = torch.softmax(ranked.masked_fill(~kept, float("-inf")), dim=-1)
    before = probability.cumsum(dim=-1) - probability
    top_p = floats[:, TOP_P, None]
    kept &= (before < top_p) | (top_p >= 1)
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter_(1, ids, kept)


def collect_logprobs(
    counts: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.float32],
    top: npt.NDArray[np.float32],
    top_ids: npt.NDArray[np.int64],
) -> list[TokenLogprobs | None]:
    """Host arrays to one entry a sampled row; `counts` as `Sampler.num_logprobs` says."""
    entries: list[TokenLogprobs | None] = [None] * len(counts)
    for row in np.flatnonzero(counts >= 0):
        count = counts[row]
        best = dict(zip(top_ids[row, :count].tolist(), top[row, :count].tolist(), strict=True))
        entries[row] = TokenLogprobs(float(chosen[row]), best)
    return entries
