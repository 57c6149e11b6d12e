"""How decode attention of few sequences, or long ones (`cuda_kernels/decode_attention.cu`), is divided: tiles, and the steps each serves.

A tile says how many blocks share a sequence and KV head, how many warps a block has, and how many pages each warp has in flight. All blocks
should be on the GPU at once, in a wave that is nearly full: blocks are placed where room is first, so a wave that half fills the SMs fills
some of them and leaves others idle, and a second wave of a few blocks takes as long as the first. Of short sequences what counts besides is
that the next kernel's weights need the room; of long ones, that warps are enough to multiply pages as fast as memory brings them. Chosen by
layers and whole steps on an H200 (docs/facts/kernels-decode-attention.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import LEAST_KEYS
from trtllm_kernels.lowering.call import OpCall, next_power_of_2
from trtllm_kernels.lowering.space import NEVER

CODES = {"fp8": 1, "int8": 2}
TUNED = ("splits", "warps", "stages")
SMALL_PAGE_BYTES = 8 * 1024
"""Of a KV head's page of codes: up to this very few long sequences have more warps."""
_ROOM = 4
"""Warps per SM that keep enough pages in flight, and leave room for blocks of the next kernel."""
_RING_BYTES, _SMALL_RING_BYTES = 24 * 1024, 16 * 1024
"""Of pages in flight per warp, if that is two at least: of few warps, and of more."""
_SM_BYTES, _RESERVED_BYTES = 228 * 1024, 1024
"""Of shared memory: an SM's, and what each block takes besides its own."""
SHORT_KEYS, _LONG_KEYS, _LONGEST_KEYS = 1024, 4096, 16384
"""Of the longest sequence: beyond the first some sequences have more warps, beyond the second very few, too. Equal shares of all SMs are
faster beyond the first for many sequences, beyond the second for all but few, and beyond the third for any number."""


@dataclass(frozen=True)
class Tile:
    """For up to `most` sequences: `splits` blocks per sequence and KV head, of `warps` warps each, which have `stages` pages in flight."""

    name: str
    most: int
    splits: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Steps:
    """Those of more than `below` and up to `most` sequences, the longest of which has more than `above` and up to `keys` keys."""

    below: int
    most: int
    above: int
    keys: int

    @property
    def here(self) -> str:
        """1 in such a step, else 0."""
        longer = f", L - {self.above}" if self.above else ""
        shorter = f", {self.keys + 1} - L" if self.keys < NEVER else ""
        return f"max(0, min(1, D - {self.below}, {self.most + 1} - D{longer}{shorter}))"


def page_bytes(call: OpCall) -> int:
    """Of one KV head's keys and values in a page."""
    cache = call["kv_cache"]
    return 2 * bytes_of(cache.size(4) * cache.size(5), cache.dtype)


def longest(call: OpCall) -> int:
    """Tokens of the longest sequence that the page table has room for."""
    return call["block_table"].size(1) * call["kv_cache"].size(4)


def shared_bytes(call: OpCall, tile: Tile) -> int:
    """Of a block: pages in flight, and its share of the sums of all blocks that have the same sequence and KV head."""
    cache, group = call["kv_cache"], call.integer("num_heads") // call.integer("num_kv_heads")
    stage_bytes = page_bytes(call) + (8 * cache.size(4) if CODES.get(cache.dtype) == CODES["int8"] else 16)
    part_bytes = 16 * ceil_div(group, 2) * (cache.size(5) // 2 // tile.splits + 1)
    return tile.warps * tile.stages * stage_bytes + (tile.splits * tile.warps if tile.splits > 1 else 1) * part_bytes + 16


def most_sequences(call: OpCall) -> int:
    """For which the kernel is taken where no sequence is long."""
    return _ROOM * call.sm_count // call.integer("num_kv_heads")


def default_tiles(call: OpCall) -> tuple[Tile, ...]:
    """All of them."""
    return tuple({tile.name: tile for _, _, tiles in _tiles_by_length(call) for tile in tiles}.values())


def divided_above(call: OpCall, to: int) -> dict[int, int]:
    """Most sequences, of up to `to`, that tiles divide where one is so long that equal shares take over from fewer: by the keys that it
    exceeds."""
    few = _ROOM * call.sm_count // (8 * call.integer("num_kv_heads"))
    return {_LONG_KEYS: min(to, few), _LONGEST_KEYS: 0}


def steps_of_tiles(call: OpCall, tuned: Mapping[str, int], to: int, fewer: Mapping[int, int]) -> dict[Tile, list[Steps]]:
    """Which steps each tile serves, of which no two overlap: those of up to `to` sequences. `fewer`: up to how many
    where one has more than so many keys."""
    most_keys, steps = longest(call), dict[Tile, list[Steps]]()
    for above, keys, tiles in _tiles_by_length(call):
        below, last = 0, fewer.get(above, to)
        for tile in tiles if above < most_keys else ():
            most = last if tile is tiles[-1] else min(last, tile.most)
            if most > below:
                _add(steps.setdefault(_tuned(tile, tuned), []), Steps(below, most, above, keys if keys < most_keys else NEVER))
                below = most
    return steps


def _add(steps: list[Steps], more: Steps) -> None:
    """One entry for lengths that follow each other."""
    if steps and replace(more, above=steps[-1].above) == replace(steps[-1], keys=more.keys) and more.above == steps[-1].keys:
        more = replace(more, above=steps.pop().above)
    steps.append(more)


def _tuned(tile: Tile, tuned: Mapping[str, int]) -> Tile:
    """Without name and `most`, so that ranges of the same tile are served by one launch."""
    splits, warps, stages = (tuned[f"decode_{tile.name}_{name}"] for name in TUNED)
    return Tile("", 0, splits, warps, stages)


def _tiles_by_length(call: OpCall) -> tuple[tuple[int, int, tuple[Tile, ...]], ...]:
    """(more keys than, up to, tiles in the order of numbers of sequences), by the longest sequence."""
    heads, most_splits, of_page = call.integer("num_kv_heads"), min(8, call["kv_cache"].size(5) // 16), page_bytes(call)
    room, stages, fewer = _ROOM * call.sm_count, max(2, _RING_BYTES // of_page), max(2, _SMALL_RING_BYTES // of_page)
    small = of_page <= SMALL_PAGE_BYTES
    one = Tile("one", call.sm_count // (8 * heads), most_splits, 4, stages)
    few = Tile("few", room // (8 * heads), most_splits, 1, stages)
    some = Tile("some", room // heads, 2, 1, fewer)
    some = replace(some, most=min(some.most, _resident(call, some) * call.sm_count // (2 * heads)))
    more = Tile("more", room // heads, 1, 1, 3)
    last = () if some.most == more.most else (more,)
    longer = replace(some, name="longer_some", stages=stages)
    if stages == fewer or _resident(call, longer) < 2 * _ROOM:
        longer = some
    # those of up to LEAST_KEYS have names of their own, so that a tile tuned for few keys does not serve many
    longer_one, longer_few = replace(one, name="longer_one"), replace(few, name="longer_few")
    long_one = replace(one, name="long_one", warps=8, stages=fewer) if small else replace(one, name="long_one", stages=3)
    long_few = replace(few, name="long_few", warps=2, stages=max(3, fewer)) if small else longer_few
    long_some = Tile("long_some", 3 * room // (4 * heads), 2, 4, fewer)
    a_wave = _resident(call, long_some) * call.sm_count // (2 * heads)
    # with one (sequence, KV head) for each SM they then fill a wave
    long_some = replace(long_some, splits=max(2, min(most_splits, next_power_of_2(_resident(call, long_some)))))
    # where sequences are not so long that further waves are worth their start
    in_a_wave = replace(long_some, most=min(long_some.most, a_wave))
    return (
        (0, LEAST_KEYS, (one, few, some, *last)),
        (LEAST_KEYS, SHORT_KEYS, (longer_one, longer_few, longer, *last)),
        (SHORT_KEYS, _LONG_KEYS, (longer_one, longer_few, in_a_wave, longer, *last)),
        (_LONG_KEYS, _LONGEST_KEYS, (long_one, long_few, long_some, longer, *last)),
        (_LONGEST_KEYS, NEVER, (long_one, long_few, long_some, longer, *last)),
    )


def _resident(call: OpCall, tile: Tile) -> int:
    """Blocks that an SM holds at once."""
    return _SM_BYTES // (shared_bytes(call, tile) + _RESERVED_BYTES)
