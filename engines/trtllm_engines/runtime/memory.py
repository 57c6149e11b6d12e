"""How much memory an engine takes of its device besides weights, and what is said when it is too little: before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import torch

from trtllm_engines import memory
from trtllm_engines.compiler.plan import RING_SLOTS, Plan, Profile
from trtllm_engines.errors import OutOfMemoryError
from trtllm_engines.memory import gib
from trtllm_engines.runtime.pages import RESERVED_PAGES

_STEP_ROW_BYTES = 160
"""Of a sequence, in step inputs and sampling parameters."""


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.host_free_bytes()


def page_bytes(plan: Plan) -> int:
    """Memory of one page across all layers of a rank."""
    rows = plan.stage.num_layers * 2 * plan.kv_heads * plan.profile.page_size
    return plan.quant.kv.nbytes(rows, plan.config.head_dim)


def step_bytes(profile: Profile) -> int:
    """About what a rank keeps on its device besides weights, arena and KV cache: block table, step inputs, sampling parameters."""
    table = 4 * (profile.max_batch_size + 1) * profile.max_pages_per_seq
    inputs = (RING_SLOTS + 1) * (4 * profile.max_num_tokens + _STEP_ROW_BYTES * profile.max_batch_size)
    return table + inputs


def check_room(plan: Plan, arena_bytes: int, num_pages: int | None, free: int) -> None:
    """Raises `OutOfMemoryError` unless arena, step inputs and KV cache (of one page at least) fit `free` bytes, saying what would."""
    pages = RESERVED_PAGES + 1 if num_pages is None else num_pages
    needed = arena_bytes + step_bytes(plan.profile) + pages * page_bytes(plan)
    if needed <= free:
        return
    fits = _fitting(plan, arena_bytes, pages * page_bytes(plan), free)
    advice = f"; {fits} fits" if fits else "; free some, or build for shorter sequences"
    raise OutOfMemoryError(
        f"no room for the KV cache: the engine needs {gib(needed)} of memory besides its weights and {gib(max(free, 0))} are free{advice}"
    )


def _fitting(plan: Plan, arena_bytes: int, cache_bytes: int, free: int) -> str:
    """The largest smaller profile that fits, its batch and tokens halved together; the arena grows as the tokens do."""
    profile = plan.profile
    batch, tokens = profile.max_batch_size, profile.max_num_tokens
    while batch > 1 or tokens > 64:
        batch, tokens = max(1, batch // 2), max(64, batch // 2, tokens // 2)
        smaller = replace(profile, max_batch_size=batch, max_num_tokens=tokens)
        if arena_bytes * tokens // profile.max_num_tokens + step_bytes(smaller) + cache_bytes <= free:
            return f"max_batch_size {batch} with max_num_tokens {tokens}"
    return ""
