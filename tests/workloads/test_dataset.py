"""NVIDIA's JSON lines: written byte-identically, read back unchanged, and refused with the line that is wrong."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_workloads import WorkloadError, dataset, json_items
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.errors import WriteError
from trtllm_workloads.files import replacing
from trtllm_workloads.lengths import Correlated, Fixed, Uniform
from trtllm_workloads.open_workload import open_workload
from trtllm_workloads.request import Workload
from trtllm_workloads.structure import Conversations, with_adapters, with_priorities, with_slo
from trtllm_workloads.synthetic import fixed, generator, synthetic
from trtllm_workloads.traces import read_trace

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


def test_an_array_and_a_parquet_file_hold_the_same_requests_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_READ_CHARACTERS", 1000)
    rows = [{"task_id": number, "input_ids": [number + 1] * (number % 7 + 1), "output_tokens": number % 5 + 1} for number in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines, array, table = (open_workload(tmp_path / f"a.{suffix}") for suffix in ("jsonl", "json", "parquet"))
    assert lines.content_hash == array.content_hash == table.content_hash
    assert len(read_trace(tmp_path / "a.json")) == len(read_trace(tmp_path / "a.parquet")) == 300

    (tmp_path / "bad.json").write_text(json.dumps([*rows[:2], {"prompt": "hi"}, rows[3]]))
    with pytest.raises(WorkloadError, match=r"bad\.json, row 3: output_tokens is None"):
        open_workload(tmp_path / "bad.json")
    assert open_workload(tmp_path / "bad.json", skip_bad_rows=True).skipped == 1
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkloadError, match=r"cut\.parquet is a Parquet file that is damaged or cut short"):
        open_workload(tmp_path / "cut.parquet")
    (tmp_path / "other.csv").write_text("isl,osl\n10,5\n")
    with pytest.raises(WorkloadError, match=r"other\.csv is in no trace format known here \(it begins 'isl,osl'\)"):
        open_workload(tmp_path / "other.csv", skip_bad_rows=True)


@pytest.mark.parametrize("read_characters", [1, 5, 1 << 20])
def test_nothing_but_blanks_may_follow_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_characters: int) -> None:
    monkeypatch.setattr(json_items, "_READ_CHARACTERS", read_characters)
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}]\r\n   \r\n')
    assert list(json_items.items(path)) == [{"a": 1}]
    path.write_bytes(b'[{"a": 1}]\r\n   \r\n[{"a": 2}]')
    with pytest.raises(WorkloadError, match=r"a\.json goes on after the end of its JSON array"):
        list(json_items.items(path))


@pytest.mark.parametrize("name", ["conversations", "conversation", "messages"])
def test_conversations_have_turns_of_either_form(tmp_path: Path, name: str) -> None:
    asked, said = "hi " * 8, [{"type": "text", "text": "a" * 10}, {"type": "text", "text": "b" * 10}]
    first, second = {"role": "user", "content": [{"type": "text", "text": asked}]}, {"role": "assistant", "content": said}
    sharegpt = [{"from": "human", "value": asked}, {"from": "gpt", "value": "a" * 20}]
    for number, turns in enumerate(([first, second], sharegpt)):
        rows = [{name: turns}] * 3
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{number}.json").write_text(json.dumps(rows))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
        for suffix in ("json", "jsonl", "parquet"):
            trace = read_trace(tmp_path / f"{number}.{suffix}")
            assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([6] * 3, [5] * 3), (suffix, number)


def test_keys_of_a_conversation_that_are_null_are_not_there(tmp_path: Path) -> None:
    """As in a Parquet file whose rows have different keys."""
    openai = [{"role": "user", "content": "hi " * 8}, {"role": "assistant", "content": "a" * 20}]
    sharegpt = [{"from": "human", "value": "hi " * 8}, {"from": "gpt", "value": "a" * 20}]
    mixed = [openai[0], sharegpt[1]]
    pq.write_table(pa.table({"conversations": [sharegpt, None, mixed], "messages": [None, openai, None]}), tmp_path / "a.parquet")
    trace = read_trace(tmp_path / "a.parquet")
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([6] * 3, [5] * 3)


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


@pytest.mark.parametrize("length", ["output_tokens", "output_len", "output_length", "max_tokens"])
@pytest.mark.parametrize("prompt", ["prompt", "text_input"])
def test_custom_datasets_of_other_tools_are_read(prompt: str, length: str, tmp_path: Path) -> None:
    path = tmp_path / "custom.jsonl"
    path.write_text(json.dumps({prompt: "two words", length: 7}) + "\n")
    workload = open_workload(path)
    assert ([request.text for request in workload.requests()], workload.output_tokens.tolist()) == (["two words"], [7])


def test_texts_become_tokens_where_a_tokenizer_is_given(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(
        '{"prompt": "abc", "output_tokens": 5}\n{"prompt": "de", "output_tokens": 6, "arrival_s": 1}\n'.replace(', "arrival_s": 1', "")
    )
    workload = open_workload(path, tokenize=lambda text: [ord(letter) for letter in text])
    assert [request.prompt.tolist() for request in workload.requests() if request.prompt is not None] == [[97, 98, 99], [100, 101]]
    assert workload.input_tokens.tolist() == [3, 2]
    with pytest.raises(WorkloadError, match="the prompt of request 0 has no token"):
        open_workload(path, tokenize=lambda text: [])


WRONG = st.sampled_from(
    [None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "x", "", [], [[1]], {"a": {}}, ["a", -1]]
)
RICH: dict[str, object] = {
    "task_id": 0,
    "input_ids": [5, 6],
    "output_tokens": 3,
    "lora_request": {"lora_name": "a", "lora_int_id": 1, "lora_path": ""},
    "arrival_s": 0.5,
    "priority": 1,
    "session": 2,
    "turn": 0,
    "after": -1,
    "think_s": 0.5,
    "slo_ms": {"ttft": 100.5},
}


@given(field=st.sampled_from(sorted(RICH)), wrong=WRONG, nested=st.booleans(), cut=st.floats(0, 1), whole=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_wrong_value_is_read_or_refused_in_a_sentence(
    field: str, wrong: object, nested: bool, cut: float, whole: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inner = RICH[field]
    value = {**inner, next(reversed(inner)): wrong} if nested and isinstance(inner, dict) else wrong
    text = json.dumps({**RICH, field: value}) + "\n"
    path = tmp_path_factory.mktemp("fuzz") / "d.jsonl"
    path.write_text(f"{GOOD}\n" + (text if whole else text[: int(len(text) * cut)]))
    for skip in (False, True):
        try:
            workload, _ = dataset.read(path, skip_bad_rows=skip)
        except WorkloadError as error:
            assert "d.jsonl" in str(error) or "workload" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1 and "validation" not in str(error)  # noqa: PT017, PT018
        else:
            assert len(workload.requests()) == len(workload)


def test_damaged_lines_name_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    for line in ("[" * 100_000, '{"input_ids":[' + "9" * 5000 + '],"output_tokens":1}', '{"input_ids":[1],"output_tokens":1e400}'):
        path.write_text(f"{GOOD}\n{line}\n")
        with pytest.raises(WorkloadError, match=r"d\.jsonl, line 2: .*--skip-bad-rows"):
            dataset.read(path)


def _interrupted(stream: IO[str]) -> None:
    stream.write("half")
    raise KeyboardInterrupt


def test_a_full_disk_is_no_mistake_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "set.jsonl").write_text("earlier")
    with (
        pytest.raises(WriteError, match=r"cannot write .*set\.jsonl: No space left on device") as caught,
        replacing(tmp_path / "set.jsonl") as out,
    ):
        out.write("new")
    assert caught.value.exit_code == 1
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("set.jsonl", "earlier")]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as stream:
        _interrupted(stream)
    assert (path.read_text(), [file.name for file in tmp_path.iterdir()]) == ("old", ["set.jsonl"])
    with replacing(path) as stream:
        stream.write("new\n")
    assert path.read_bytes() == b"new\n"
    with pytest.raises(WorkloadError, match="cannot write"), replacing(tmp_path / "none" / "set.jsonl"):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WorkloadError, match="is a pipe or device; a dataset is a file"):
        dataset.read(tmp_path / "pipe")


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
