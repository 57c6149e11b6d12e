"""NVIDIA's JSON lines: written byte-identically, read back unchanged, and refused with the line that is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_workloads import WorkloadError, dataset
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.lengths import Correlated, Fixed, Uniform
from trtllm_workloads.request import Workload
from trtllm_workloads.structure import Conversations, with_adapters, with_priorities, with_slo
from trtllm_workloads.synthetic import fixed, generator, synthetic

GOOD = '{"task_id":0,"input_ids":[5,6],"output_tokens":3}'


def text_of(workload: Workload) -> str:
    stream = io.StringIO()
    dataset.write(workload, stream)
    return stream.getvalue()


def rich_workload(seed: int, n: int = 12) -> Workload:
    lengths = Correlated(Uniform(1, 9), Uniform(1, 9))
    workload = synthetic(n, lengths, conversations=Conversations(Uniform(1, 3), 1.5), arrivals=Poisson(2.0), seed=seed)
    workload = with_adapters(workload, 3, "zipf", generator(seed, "lora"), share=0.5)
    return with_slo(with_priorities(workload, (1, 1), generator(seed, "priority")), 100.5, None, 900)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_everything_survives_the_round_trip(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    workload = rich_workload(seed)
    path = tmp_path_factory.mktemp("data") / "set.jsonl"
    path.write_text(text_of(workload))
    again, skipped = dataset.read(path)
    assert skipped == 0
    assert again.content_hash == workload.content_hash
    assert text_of(again) == text_of(workload) == text_of(rich_workload(seed))


def test_a_plain_workload_is_exactly_nvidias_file() -> None:
    rows = [json.loads(line) for line in text_of(fixed(3, 4, 7)).splitlines()]
    assert [list(row) for row in rows] == [["task_id", "input_ids", "output_tokens"]] * 3
    assert [row["task_id"] for row in rows] == [0, 1, 2]
    assert all(len(row["input_ids"]) == 4 and row["output_tokens"] == 7 for row in rows)


def test_lora_takes_nvidias_form() -> None:
    workload = with_adapters(fixed(2, 4, 4), 2, "round-robin", generator(0, "lora"))
    assert json.loads(text_of(workload).splitlines()[1])["lora_request"] == {"lora_name": "lora_1", "lora_int_id": 1, "lora_path": ""}


def test_text_prompts_are_read_with_their_length_left_to_the_target(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"task_id": 1, "prompt": "Grüße", "output_tokens": 5}\n\n{"prompt": "b", "output_tokens": 6}\n')
    workload, _ = dataset.read(path)
    assert [r.text for r in workload.requests()] == ["Grüße", "b"]
    assert workload.requests()[0].prompt is None
    assert workload.output_tokens.tolist() == [5, 6]
    assert json.loads(text_of(workload).splitlines()[0])["prompt"] == "Grüße"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"output_tokens":3}', "neither input_ids nor prompt"),
        ('{"input_ids":[],"output_tokens":3}', "at least one token id"),
        ('{"input_ids":[1,-2],"output_tokens":3}', "whole numbers of at least 0"),
        ('{"input_ids":[1.5],"output_tokens":3}', "whole numbers of at least 0"),
        ('{"input_ids":[1]}', "output_tokens is None"),
        ('{"input_ids":[1],"output_tokens":0}', "output_tokens is 0"),
        ('{"input_ids":[1],"output_tokens":true}', "output_tokens is True"),
        ('{"prompt":"","output_tokens":1}', "not empty"),
        ('{"input_ids":[1],"output_tokens":1,"arrival_s":-1}', "arrival_s is -1"),
        ('{"input_ids":[1],"output_tokens":1,"priority":"high"}', "priority is 'high'"),
        ('{"input_ids":[1],"output_tokens":1,"lora_request":3}', "lora_request must be"),
        ('{"input_ids":[1],"output_tokens":1,"slo_ms":{"ttft":0}}', "slo_ms must be"),
    ],
)
def test_a_bad_row_names_its_line_and_can_be_skipped(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(WorkloadError, match=rf"bad\.jsonl, line 3: .*{complaint}"):
        dataset.read(path)
    workload, skipped = dataset.read(path, skip_bad_rows=True)
    assert (len(workload), skipped) == (2, 1)


def test_files_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read dataset"):
        dataset.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(WorkloadError, match="holds no request"):
        dataset.read(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        dataset.read(tmp_path / "binary.jsonl")
    (tmp_path / "mixed.jsonl").write_text(GOOD + '\n{"prompt":"a","output_tokens":1}\n')
    with pytest.raises(WorkloadError, match="1 of 2 rows"):
        dataset.read(tmp_path / "mixed.jsonl")
    (tmp_path / "half.jsonl").write_text(GOOD + '\n{"input_ids":[1],"output_tokens":1,"arrival_s":2}\n')
    with pytest.raises(WorkloadError, match="request 0 has no arrival_s"):
        dataset.read(tmp_path / "half.jsonl")


def test_fixed_lengths_in_flag_order() -> None:
    workload = synthetic(5, Correlated(Fixed(3), Fixed(2)))
    assert np.asarray(workload.input_tokens).tolist() == [3] * 5
