"""What lands on the device: the step inputs as the plan defines them, padding included."""

from __future__ import annotations

import numpy as np
import torch

from trtllm_engines.compiler.plan import RING_SLOTS, Profile
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.inputs import StepInputs

PROFILE = Profile(max_batch_size=4, max_num_tokens=40, max_seq_len=64, page_size=16)
DRAWS = np.arange(15, dtype=np.int32).reshape(5, 3)
"""Of slots 0 to 4, the last one padding's."""


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def mixed_batch() -> StepBatch:
    """Two decodes, a middle chunk of 5 that yields nothing, a last chunk of 3."""
    return StepBatch(
        slots=int32(2, 0, 3, 1),
        query_lens=int32(1, 1, 5, 3),
        kv_lens=int32(17, 9, 10, 3),
        num_decodes=2,
        context_tokens=int32(11, 12, 13, 14, 15, 21, 22, 23),
        sampled=np.array([True, True, False, True]),
        page_updates=np.array([[2, 1, 9], [1, 0, 5]], np.int32),
    )


def test_a_mixed_step_is_packed_as_the_plan_says() -> None:
    inputs = StepInputs(PROFILE, "cpu")
    sizes = inputs.upload(mixed_batch(), DRAWS)
    t = inputs.tensors
    assert (sizes.num_tokens, sizes.num_seqs, sizes.num_decodes, sizes.num_samples, sizes.longest) == (10, 4, 2, 3, 17)
    assert sizes.num_continued == 1, "the chunk of 5; the prompt of 3 begins here, and a decode is no context"
    assert sizes.longest_decode == 17
    assert t["context_tokens"][:10].tolist() == [-1, -1, 11, 12, 13, 14, 15, 21, 22, 23]
    assert t["seq_slots"][:4].tolist() == [2, 0, 3, 1]
    assert t["query_start"][:5].tolist() == [0, 1, 2, 7, 10]
    assert t["kv_lens"][:4].tolist() == [17, 9, 10, 3]
    assert t["logit_rows"][:3].tolist() == [0, 1, 9]
    assert t["sample_slots"][:3].tolist() == [2, 0, 1]
    assert t["sampling_words"][:3].tolist() == [[6, 7, 8, 17], [0, 1, 2, 9], [3, 4, 5, 3]], "each slot's, and how many tokens come before"
    assert t["ring_slot"].tolist() == [inputs.ring_slot]
    assert t["update_index"][:2].tolist() == [2 * 4 + 1, 1 * 4 + 0]
    assert t["update_pages"][:2].tolist() == [9, 5]


def test_padding_rows_decode_at_the_padding_slot() -> None:
    inputs = StepInputs(PROFILE, "cpu")
    batch = StepBatch(int32(3), int32(1), int32(7), 1, int32(), np.array([True]), np.empty((0, 3), np.int32))
    sizes = inputs.upload(batch, DRAWS, padded_seqs=4)
    t = inputs.tensors
    assert (sizes.num_tokens, sizes.num_seqs, sizes.num_decodes, sizes.num_samples, sizes.num_continued) == (4, 4, 4, 4, 0)
    assert sizes.longest_decode == 7
    assert t["seq_slots"][:4].tolist() == [3, 4, 4, 4]
    assert t["kv_lens"][:4].tolist() == [7, 1, 1, 1]
    assert t["query_start"][:5].tolist() == [0, 1, 2, 3, 4]
    assert t["context_tokens"][:4].tolist() == [-1] * 4
    assert t["logit_rows"][:4].tolist() == [0, 1, 2, 3]
    assert t["sample_slots"][:4].tolist() == [3, 4, 4, 4]
    assert t["sampling_words"][:4].tolist() == [[9, 10, 11, 7], *[[0, 0, 0, 0]] * 3], "padding is greedy"


def test_addresses_never_move_and_are_aligned() -> None:
    inputs = StepInputs(PROFILE, "cpu")
    before = {name: tensor.data_ptr() for name, tensor in inputs.tensors.items()}
    for _ in range(2 * RING_SLOTS):
        inputs.upload(mixed_batch(), DRAWS)
    assert {name: tensor.data_ptr() for name, tensor in inputs.tensors.items()} == before
    base = min(before.values())
    assert all((address - base) % 16 == 0 for address in before.values())


def test_a_host_buffer_is_not_written_while_its_step_may_be_in_flight() -> None:
    inputs = StepInputs(PROFILE, "cpu")
    inputs.upload(mixed_batch(), DRAWS)
    used = inputs._hosts[inputs.ring_slot]
    for _ in range(RING_SLOTS - 1):
        inputs.upload(StepBatch(int32(0), int32(1), int32(2), 1, int32(), np.array([True]), np.empty((0, 3), np.int32)), DRAWS)
        assert used["kv_lens"][:4].tolist() == [17, 9, 10, 3]


def test_the_largest_step_fits() -> None:
    """Every page a step can touch first: a page a chunk-page, and one a decode."""
    inputs = StepInputs(PROFILE, "cpu")
    updates = np.array([[0, 0, 1], [1, 0, 2], [2, 0, 3], [3, 0, 4], [3, 1, 5], [3, 2, 6]], np.int32)
    batch = StepBatch(
        int32(0, 1, 2, 3), int32(1, 1, 1, 37), int32(17, 17, 17, 37), 3, np.arange(37, dtype=np.int32), np.ones(4, np.bool_), updates
    )
    sizes = inputs.upload(batch, DRAWS)
    assert sizes.num_tokens == PROFILE.max_num_tokens
    table = torch.zeros(5 * 4, dtype=torch.int32)
    table.index_put_((inputs.tensors["update_index"][:6],), inputs.tensors["update_pages"][:6])
    assert table.view(5, 4)[:4].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [4, 5, 6, 0]]
