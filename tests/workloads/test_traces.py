"""Trace formats, filters and figures: on the shipped samples, on small written files, and on damaged ones."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_workloads import WorkloadError, files
from trtllm_workloads.open_workload import data_folder, open_workload
from trtllm_workloads.tokens import Vocabulary
from trtllm_workloads.traces import Trace, columns, filters, iter_trace, read_trace
from trtllm_workloads.traces.info import bars, info, prefix_hits

SAMPLES = data_folder("samples")
AZURE = SAMPLES / "azure_conversation_400.csv"
MOONCAKE = SAMPLES / "mooncake_conversation_200.jsonl"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_azure_2023_sample() -> None:
    trace = read_trace(AZURE)
    assert len(trace) == 400
    assert (trace.input_tokens[:2].tolist(), trace.output_tokens[:2].tolist()) == ([374, 396], [44, 109])
    assert trace.arrival_s[:2] == pytest.approx([0.0, 4.314579])


def test_azure_2024_has_a_zone_and_the_last_line_may_lack_its_end(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00.009930+00:00,2162,5\r\n2024-05-10 00:00:00.017335+00:00,2399,6"
    trace = read_trace(written(tmp_path, text))
    assert trace.arrival_s == pytest.approx([0.0, 0.007405])
    assert trace.output_tokens.tolist() == [5, 6]


def test_burstgpt_columns_are_found_by_name_in_any_version(tmp_path: Path) -> None:
    first = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
    )
    later = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "0.5,a,1.2,ChatGPT,10,20,30,Conversation log\n1.5,b,1,ChatGPT,11,21,32,Conversation log\n9.5,a,1,GPT-4,12,22,34,Conversation log\n"
    )
    trace = read_trace(written(tmp_path, first))
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0.0, 40.0], [472, 1087])
    trace = read_trace(written(tmp_path, later))
    assert trace.session is not None
    assert trace.turn is not None
    assert (trace.session.tolist(), trace.turn.tolist()) == ([0, 1, 0], [0, 0, 1])


def test_mooncake_prompts_really_share_the_recorded_prefixes() -> None:
    trace = read_trace(MOONCAKE)
    requests = trace.to_workload(seed=3).requests()
    rows = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    assert [r.input_tokens for r in requests] == [row["input_length"] for row in rows]
    for a in range(0, 60, 7):
        for b in range(a + 1, 60):
            ids_a, ids_b = rows[a]["hash_ids"], rows[b]["hash_ids"]
            same = next((k for k, (x, y) in enumerate(zip(ids_a, ids_b, strict=False)) if x != y), min(len(ids_a), len(ids_b)))
            m = min(len(requests[a].prompt), len(requests[b].prompt))
            differ = np.flatnonzero(requests[a].prompt[:m] != requests[b].prompt[:m])
            shared = int(differ[0]) if len(differ) else m
            assert shared == min(same * 512, m)


def test_qwen_turns_belong_to_their_sessions(tmp_path: Path) -> None:
    rows = [
        {
            "chat_id": 1,
            "parent_chat_id": -1,
            "timestamp": 1.5,
            "input_length": 33,
            "output_length": 4,
            "type": "text",
            "turn": 1,
            "hash_ids": [7, 8, 9],
        },
        {
            "chat_id": 2,
            "parent_chat_id": -1,
            "timestamp": 2.0,
            "input_length": 16,
            "output_length": 4,
            "type": "text",
            "turn": 1,
            "hash_ids": [5],
        },
        {
            "chat_id": 3,
            "parent_chat_id": 1,
            "timestamp": 4.0,
            "input_length": 50,
            "output_length": 4,
            "type": "text",
            "turn": 2,
            "hash_ids": [7, 8, 10],
        },
    ]
    trace = read_trace(written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "q.jsonl"))
    assert trace.session is not None
    assert trace.turn is not None
    assert (trace.session.tolist(), trace.turn.tolist()) == ([1, 2, 1], [0, 0, 1])
    first, _, third = (r.prompt for r in trace.to_workload().requests())
    assert (first[:32] == third[:32]).all()
    assert len(third) == 50  # two tokens more than the blocks cover: its own
    assert prefix_hits(trace)[0] == pytest.approx(2 / 7)


def test_sharegpt_json_streams_and_counts_the_history_into_each_prompt(tmp_path: Path) -> None:
    talk = {
        "id": "x",
        "conversations": [{"from": who, "value": "w" * n} for who, n in (("human", 40), ("gpt", 80), ("human", 8), ("gpt", 4))],
    }
    path = written(
        tmp_path, json.dumps([talk, {"id": "y", "conversations": [{"from": "gpt", "value": "no question"}]}, talk]), "share.json"
    )
    trace = read_trace(path)
    assert trace.input_tokens.tolist() == [10, 32, 10, 32]
    assert trace.output_tokens.tolist() == [20, 1, 20, 1]
    assert not trace.timed
    bad = written(tmp_path, json.dumps([talk, {"id": "z"}, talk]), "bad.json")
    with pytest.raises(WorkloadError, match=r"conversation 2: there is no list.*--skip-bad-rows"):
        read_trace(bad)
    lines = written(tmp_path, "".join(json.dumps(one) + "\n" for one in (talk, talk)), "share.jsonl")
    assert read_trace(lines).input_tokens.tolist() == open_workload(lines).input_tokens.tolist() == [10, 32, 10, 32]
    skipped = read_trace(bad, skip_bad_rows=True)
    assert (len(skipped), skipped.skipped) == (4, 1)
    with pytest.raises(WorkloadError, match="ends in the middle"):
        read_trace(written(tmp_path, json.dumps([talk])[:-9], "cut.json"))


def test_sharegpt_lengths_and_nvidia_lines(tmp_path: Path) -> None:
    trace = read_trace(SAMPLES / "sharegpt_lengths_500.csv")
    assert (len(trace), trace.timed) == (500, False)
    assert (trace.input_tokens[1], trace.output_tokens[1]) == (290, 905)
    lines = read_trace(written(tmp_path, '{"task_id":0,"input_ids":[1,2,3],"output_tokens":7}\n', "d.jsonl"))
    assert (lines.input_tokens.tolist(), lines.output_tokens.tolist()) == ([3], [7])
    lines = read_trace(written(tmp_path, '{"input_ids":[1,2,3],"output_len":7}\n', "d.jsonl"))
    assert lines.output_tokens.tolist() == [7]


BAD_AZURE = [
    ("2023-11-16 18:15:46.68,12", "2 fields where the header has 3"),
    ("2023-11-16 18:15:46.68,12,3,4", "4 fields"),
    ("yesterday,12,3", "TIMESTAMP is 'yesterday'"),
    (",12,3", "TIMESTAMP is"),
    ("2023-11-16 18:15:46.68,twelve,3", "ContextTokens is 'twelve', not a whole number"),
    ("2023-11-16 18:15:46.68,12,0", "GeneratedTokens is 0; it must be at least 1"),
    ("2023-11-16 18:15:46.68,-5,3", "ContextTokens is -5"),
    ("2023-11-16 18:15:46.68,1.5,3", "not a whole number"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD_AZURE)
def test_a_bad_row_names_its_line_and_can_be_skipped(line: str, complaint: str, tmp_path: Path) -> None:
    lines = AZURE.read_text().splitlines()
    path = written(tmp_path, "\n".join([*lines[:200], line, *lines[200:300], line, *lines[300:]]))
    with pytest.raises(WorkloadError, match=rf"trace\.csv, line 201: .*{complaint}"):
        read_trace(path)
    trace = read_trace(path, skip_bad_rows=True)
    assert (len(trace), trace.skipped) == (400, 2)
    np.testing.assert_array_equal(trace.input_tokens, read_trace(AZURE).input_tokens)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"timestamp": 0, "input_length": 5', "not JSON"),
        ("[1]", "one JSON object a line"),
        ('{"timestamp": 0, "input_length": 5, "hash_ids": []}', "there is no output_length"),
        ('{"timestamp": "x", "input_length": 5, "output_length": 1, "hash_ids": []}', "timestamp is 'x'"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": 3}', "hash_ids is not a list"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}', "whole numbers"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": []}, {"timestamp": 1}', "one JSON object a line"),
    ],
)
def test_a_bad_json_line_names_its_line(line: str, complaint: str, tmp_path: Path) -> None:
    lines = MOONCAKE.read_text().splitlines()
    path = written(tmp_path, "\n".join([*lines[:50], "", line, *lines[50:]]), "m.jsonl")
    with pytest.raises(WorkloadError, match=rf"m\.jsonl, line 52: .*{complaint}"):
        read_trace(path)
    assert read_trace(path, skip_bad_rows=True).skipped == 1


AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def test_files_are_read_compressed_and_behind_blank_lines(tmp_path: Path) -> None:
    """As they are downloaded and edited: the same rows, and the line numbers of the file."""
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(AZURE.read_bytes()))
    np.testing.assert_array_equal(read_trace(packed).input_tokens, read_trace(AZURE).input_tokens)
    assert len(open_workload(packed, requests=7)) == 7
    packed.write_bytes(packed.read_bytes()[:2000])
    with pytest.raises(WorkloadError, match=r"a\.csv\.gz is gzip-compressed and damaged or cut short"):
        read_trace(packed)
    path = written(tmp_path, f"\ufeff\r\n\r\n{AZURE_HEADER}\r\n2023-11-16 18:15:46,5,4\r\nx,5,4\r\n")
    assert read_trace(path, skip_bad_rows=True).input_tokens.tolist() == [5]
    with pytest.raises(WorkloadError, match="line 5: TIMESTAMP is 'x'"):
        read_trace(path)
    talk = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    assert len(read_trace(written(tmp_path, "\n" + json.dumps(talk, indent=1), "s.json"))) == 1


@pytest.mark.filterwarnings("error")
def test_times_with_any_zone_are_compared_as_moments(tmp_path: Path) -> None:
    rows = ["2024-05-10 00:00:01Z,5,4", "2024-05-10 02:00:03.5+02:00,5,4", "2024-05-10 00:00:04,5,4"]
    trace = read_trace(written(tmp_path, "\n".join([AZURE_HEADER, *rows])))
    assert trace.arrival_s == pytest.approx([0, 2.5, 3])


@pytest.mark.filterwarnings("error")
def test_counts_that_are_no_numbers_and_doubled_columns_are_refused(tmp_path: Path) -> None:
    for word in ("nan", "inf", "1e300"):
        with pytest.raises(WorkloadError, match=f"line 2: ContextTokens is '{word}', not a whole number"):
            read_trace(written(tmp_path, f"{AZURE_HEADER}\n2023-11-16 18:15:46,{word},4\n"))
    with pytest.raises(WorkloadError, match="line 1: there are two columns ContextTokens"):
        read_trace(written(tmp_path, f"{AZURE_HEADER},contexttokens\n2023-11-16 18:15:46,5,4,9\n"))


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:4{k},5,4,note" for k in range(6)]
    rows[1] = '2023-11-16 18:15:41,5,4,"note'
    assert len(read_trace(written(tmp_path, "\n".join([f"{AZURE_HEADER},text", *rows])))) == 6


def test_files_that_are_no_trace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read trace"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(WorkloadError, match=r"in no trace format known here \(it begins 'a,b,c'\); there are azure"):
        read_trace(written(tmp_path, "a,b,c\n1,2,3\n"))
    with pytest.raises(WorkloadError, match="is empty"):
        read_trace(written(tmp_path, "\n"))
    with pytest.raises(WorkloadError, match="holds no request"):
        read_trace(written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n"))
    with pytest.raises(WorkloadError, match="line 1: there is no column ContextTokens"):
        read_trace(written(tmp_path, "TIMESTAMP,Tokens,GeneratedTokens\n"), format="azure")
    with pytest.raises(WorkloadError, match="'csv' is not a trace format"):
        read_trace(AZURE, format="csv")


@given(cut=st.integers(0, 14_900))
@settings(max_examples=40, deadline=None)
def test_a_trace_cut_anywhere_is_read_or_refused_with_a_sentence(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "t.csv"
    path.write_bytes(AZURE.read_bytes()[:cut])
    try:
        rows = len(read_trace(path))
    except WorkloadError as error:
        assert "t.csv" in str(error)  # noqa: PT017
    else:
        assert 0 < rows <= 400


def test_long_traces_stream_in_blocks(tmp_path: Path) -> None:
    row = "{},ChatGPT,472,18,490,Conversation log\n"
    path = tmp_path / "long.csv"
    with path.open("w") as stream:
        stream.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        for begin in range(0, 200_000, 10_000):
            stream.write("".join(row.format(k) for k in range(begin, begin + 10_000)))
    assert len(next(iter_trace(path))) == 65_536
    rows = sum(len(part) for part in iter_trace(path))
    assert rows == 200_000


def make(arrivals: list[float], isl: list[int] | None = None) -> Trace:
    n = len(arrivals)
    return Trace("t", np.asarray(isl or [10] * n, np.int32), np.full(n, 5, np.int32), np.asarray(arrivals, float))


def test_window_is_relative_to_the_first_arrival_and_half_open() -> None:
    trace = filters.window(make([100, 101, 102, 103], [1, 2, 3, 4]), 1, 3)
    assert (trace.input_tokens.tolist(), trace.arrival_s.tolist()) == ([2, 3], [0, 1])


def test_sampling_keeps_the_share_and_stays_poisson_like() -> None:
    rng = np.random.default_rng(0)
    trace = filters.sample(make(np.cumsum(rng.exponential(1.0, 20_000)).tolist()), 0.3, rng)
    assert len(trace) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert info(trace).gap_cv == pytest.approx(1.0, abs=0.04)


def test_too_long_rows_are_left_out_whole() -> None:
    trace = make([0, 1, 2], [5, 50, 500])
    assert filters.shorter_than(trace, max_input=50).input_tokens.tolist() == [5, 50]
    assert filters.shorter_than(trace, max_total=54).input_tokens.tolist() == [5]
    assert len(filters.shorter_than(trace, max_output=4)) == 0
    with pytest.raises(WorkloadError, match="no row is left"):
        filters.shorter_than(trace, max_output=4).to_workload()


def test_jitter_spreads_each_instant_up_to_the_next() -> None:
    trace = filters.jitter(make([0.0] * 500 + [3.0] * 500 + [6.0]), np.random.default_rng(0))
    assert trace.arrival_s.max() < 9.1
    assert len(np.unique(trace.arrival_s)) == 1001
    assert np.histogram(trace.arrival_s, bins=[0, 1.5, 3, 4.5, 6])[0] == pytest.approx([250] * 4, abs=45)


def test_a_miniature_shares_the_same_part_of_its_prompts() -> None:
    trace = read_trace(MOONCAKE)
    small = filters.length_scale(trace, 1 / 32)
    assert small.block_tokens == 16
    assert small.input_tokens.tolist() == [-(-length // 32) for length in trace.input_tokens.tolist()]
    assert prefix_hits(small)[1] == pytest.approx(prefix_hits(trace)[1], rel=0.02)
    requests = small.to_workload().requests()
    assert (requests[0].prompt[:16] == requests[1].prompt[:16]).all()
    assert not (requests[0].prompt[16:32] == requests[1].prompt[16:32]).any()
    with pytest.raises(WorkloadError, match=r"blocks of 0\.512 tokens"):
        filters.length_scale(trace, 0.001)


def test_filters_that_need_times_say_so() -> None:
    untimed = Trace("t", np.ones(2, np.int32), np.ones(2, np.int32), np.empty(0))
    for call in (
        lambda: filters.window(untimed),
        lambda: filters.jitter(untimed, np.random.default_rng(0)),
        lambda: filters.time_scale(untimed, 2),
    ):
        with pytest.raises(WorkloadError, match="has no timestamps"):
            call()


def test_taking_rows_takes_their_blocks() -> None:
    trace = read_trace(MOONCAKE)
    part = trace.take(np.array([7, 3, 3]))
    assert part.block_offsets is not None
    assert part.block_ids is not None
    rows = [json.loads(line)["hash_ids"] for line in MOONCAKE.read_text().splitlines()]
    assert part.block_ids.tolist() == rows[7] + rows[3] + rows[3]
    assert np.diff(part.block_offsets).tolist() == [len(rows[7]), len(rows[3]), len(rows[3])]


def test_figures_of_the_samples() -> None:
    figures = info(read_trace(AZURE))
    assert (figures.requests, figures.distinct_times) == (400, 400)
    assert figures.input_tokens["mean"] == pytest.approx(927.615)
    assert figures.rate_per_s == pytest.approx(399 / figures.duration_s)
    assert len(figures.rate_series) == 60
    assert sum(figures.rate_series) * figures.duration_s / 60 == pytest.approx(400)
    assert np.isnan(figures.prefix_hit_blocks)


def test_prefix_hit_bound_counts_leading_whole_blocks_only() -> None:
    trace = Trace(
        "t",
        np.array([8, 8, 6], np.int32),
        np.ones(3, np.int32),
        np.arange(3.0),
        block_offsets=np.array([0, 2, 4, 6]),
        block_ids=np.array([1, 2, 1, 2, 9, 2]),
        block_tokens=4,
    )
    by_block, by_token = prefix_hits(trace)
    assert by_block == pytest.approx(3 / 6)
    assert by_token == pytest.approx(8 / 22)  # the third row's second block was seen, but not behind its first


def test_replay_keeps_lengths_times_and_order() -> None:
    workload = read_trace(AZURE).to_workload(Vocabulary(1000), seed=1)
    assert (np.diff(workload.arrival_s) >= 0).all()
    assert workload.arrival_s[0] == 0
    assert [len(r.prompt) for r in workload.requests()] == workload.input_tokens.tolist()


def lines_of(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_lines_without_blocks_keep_lengths_and_times(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"timestamp": 1000, "input_length": 655, "output_length": 52},
        {"timestamp": 1535, "input_length": 672, "output_length": 26},
    ]
    trace = read_trace(written(tmp_path, lines_of(rows), "nohash.jsonl"))
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([655, 672], [52, 26])
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.535])
    assert (trace.block_ids, trace.session, trace.delay_s) == (None, None, None)
    first, second = trace.to_workload().requests()
    assert (first.prompt[:100] != second.prompt[:100]).any(), "they share nothing"
    part = written(tmp_path, lines_of([rows[0] | {"hash_ids": [4]}, rows[1], {**rows[1], "hash_ids": [4, 5]}]), "some.jsonl")
    offsets = read_trace(part).block_offsets
    assert offsets is not None
    assert offsets.tolist() == [0, 1, 1, 3]


def test_what_is_null_is_not_there(tmp_path: Path) -> None:
    """As AIPerf's own models write lines."""
    nothing = {"hash_ids": None, "session_id": None, "delay": None}
    rows: list[dict[str, object]] = [{"timestamp": at, "input_length": 5, "output_length": 3, **nothing} for at in (0, 10)]
    trace = read_trace(written(tmp_path, lines_of(rows), "null.jsonl"))
    assert (trace.arrival_s.tolist(), trace.block_ids, trace.session) == ([0.0, 0.01], None, None)
    turns: list[dict[str, object]] = [
        {"session_id": "a", "timestamp": 0, "delay": None, "input_length": 5, "output_length": 3},
        {"session_id": "a", "timestamp": None, "delay": 20, "input_length": 6, "output_length": 3},
    ]
    workload = open_workload(written(tmp_path, lines_of(turns), "turns.jsonl"))
    assert workload.after is not None
    assert workload.think_s is not None
    assert (workload.after.tolist(), workload.think_s.tolist()) == ([-1, 0], [0, 0.02])
    with pytest.raises(WorkloadError, match="line 2: there is a timestamp, though the first line has none"):
        read_trace(written(tmp_path, lines_of([{"input_length": 5, "output_length": 3}, rows[0]]), "mixed.jsonl"))


def test_a_turn_behind_one_of_no_tokens_is_replayed(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"session_id": "a", "timestamp": 10, "input_length": 10, "output_length": 0},
        {"session_id": "b", "timestamp": 20, "input_length": 11, "output_length": 2},
        {"session_id": "a", "delay": 20, "input_length": 12, "output_length": 2},
    ]
    workload = open_workload(written(tmp_path, lines_of(rows), "zero.jsonl"), skip_bad_rows=True)
    assert (workload.skipped, workload.input_tokens.tolist()) == (1, [11, 12])
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 0.01])


def test_texts_with_times_and_sessions_are_replayed(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"session_id": "a", "text_input": "first of a", "output_length": 4, "timestamp": 100},
        {"session_id": "b", "text_input": "first of b", "output_length": 5, "timestamp": 50.5},
        {"session_id": "a", "text_input": "second of a", "output_length": 6, "delay": 30},
        {"text_input": "alone", "output_length": 7, "timestamp": 120},
    ]
    workload = open_workload(written(tmp_path, lines_of(rows), "texts.jsonl"))
    assert workload.output_tokens.tolist() == [5, 4, 7, 6]
    np.testing.assert_allclose(workload.arrival_s, [0, 0.0495, 0.0695, np.nan])
    assert workload.after is not None
    assert workload.think_s is not None
    assert (workload.after.tolist(), workload.think_s.tolist()) == ([-1, -1, -1, 1], [0, 0, 0, 0.03])
    untimed = [{name: value for name, value in row.items() if name != "timestamp"} for row in rows[:3]]
    workload = open_workload(written(tmp_path, lines_of(untimed), "untimed.jsonl"))
    assert (len(workload.arrival_s), workload.num_arrivals) == (0, 2)


def test_lengths_of_prompts_alone_say_what_to_add(tmp_path: Path) -> None:
    path = written(tmp_path, '{"input_length": 10, "hash_ids": [1]}\n', "half.jsonl")
    for read in (read_trace, open_workload):
        with pytest.raises(WorkloadError, match="line 1: there is an input_length, but no output_length; add one to each line"):
            read(path)


def test_a_turn_with_a_delay_waits_for_the_answer_before_it(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"session_id": "a", "timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
        {"session_id": "b", "timestamp": 200, "input_length": 50, "output_length": 5},
        {"session_id": "a", "delay": 500, "input_length": 700, "output_length": 8, "hash_ids": [0, 2]},
        {"session_id": "a", "input_length": 800, "output_length": 8},
        {"session_id": "b", "timestamp": 300, "input_length": 60, "output_length": 5},
    ]
    path = written(tmp_path, lines_of(rows), "sessions.jsonl")
    workload = open_workload(path)
    assert workload.input_tokens.tolist() == [600, 50, 60, 700, 800]
    assert workload.after is not None
    assert workload.think_s is not None
    assert workload.after.tolist() == [-1, -1, -1, 0, 3], "a turn with a time of its own waits for none"
    assert workload.think_s.tolist() == [0, 0, 0, 0.5, 0]
    np.testing.assert_allclose(workload.arrival_s, [0, 0.2, 0.3, np.nan, np.nan])
    assert workload.session is not None
    assert workload.session.tolist() == [0, 1, 1, 0, 0]
    first, *_, third, _ = workload.requests()
    assert (first.prompt[:512] == third.prompt[:512]).all()
    alone = read_trace(path)
    alone = alone.take(alone.input_tokens != 600).to_workload()
    assert alone.after is not None
    assert alone.after.tolist() == [-1, -1, -1, 2], "a session that lost its first turn starts with its second"
    np.testing.assert_allclose(alone.arrival_s, [0, 0.1, 0.3, np.nan])


def test_sessions_without_times_are_sent_as_the_load_has_them(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"session_id": k % 2, "delay": 100, "input_length": 10 + k, "output_length": 3} for k in range(4)]
    workload = open_workload(written(tmp_path, lines_of(rows), "untimed.jsonl"))
    assert len(workload.arrival_s) == 0
    assert workload.after is not None
    assert workload.after.tolist() == [-1, -1, 0, 1]
    assert workload.num_arrivals == 2


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"session_id": "z", "delay": 1, "input_length": 5, "output_length": 1}, "no earlier line of its session"),
        ({"session_id": "a", "delay": -1, "input_length": 5, "output_length": 1}, "delay is -1; it must be at least 0"),
        ({"session_id": "a", "delay": "soon", "input_length": 5, "output_length": 1}, "delay is 'soon', not a number"),
        ({"session_id": ["a"], "timestamp": 1, "input_length": 5, "output_length": 1}, "session_id is"),
        ({"session_id": "a", "timestamp": 1e300, "input_length": 5, "output_length": 1}, "beyond any time"),
        ({"session_id": "a", "timestamp": 1, "input_length": True, "output_length": 1}, "input_length is True, not a number"),
        ({"session_id": "a", "timestamp": 1, "input_length": "7", "output_length": 1}, "input_length is '7', not a number"),
        ({"session_id": "a", "timestamp": 1, "input_length": 7.5, "output_length": 1}, "input_length is 7.5, not a whole number"),
        ({"session_id": "a", "timestamp": 10**400, "input_length": 7, "output_length": 1}, "timestamp is 1000"),
        ({"session_id": "a", "timestamp": 1, "input_length": 7, "output_length": 0}, "output_length is 0; it must be at least 1"),
    ],
)
def test_a_bad_turn_names_its_line_and_the_way_out(row: dict[str, object], complaint: str, tmp_path: Path) -> None:
    good: dict[str, object] = {"session_id": "a", "timestamp": 0, "input_length": 5, "output_length": 1}
    path = written(tmp_path, lines_of([good, row, good]), "s.jsonl")
    with pytest.raises(WorkloadError, match=rf"s\.jsonl, line 2: .*{complaint}.*--skip-bad-rows"):
        read_trace(path)
    assert (len(open_workload(path, skip_bad_rows=True)), open_workload(path, skip_bad_rows=True).skipped) == (2, 1)


def test_a_workload_file_over_a_trace_skips_bad_rows_when_asked(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    written(tmp_path, header + "5,ChatGPT,472,18,490,C\n45,ChatGPT,1087,0,1087,C\n118,GPT-4,417,276,693,C\n", "burst.csv")
    spec = written(tmp_path, 'trace = { path = "burst.csv" }\n', "burst.toml")
    with pytest.raises(WorkloadError, match="line 3: Response tokens is 0"):
        open_workload(spec)
    assert open_workload(spec, skip_bad_rows=True).output_tokens.tolist() == [18, 276]


def test_a_text_without_a_length_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="not how many tokens to answer it with; add output_tokens"):
        read_trace(written(tmp_path, '{"prompt": "hello"}\n', "text.jsonl"))


JSON_LINES = {
    "mooncake": {"session_id": "a", "timestamp": 5, "delay": 3, "input_length": 5, "output_length": 1, "hash_ids": [1]},
    "qwen": {"chat_id": 1, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 33, "output_length": 4, "turn": 1, "hash_ids": [7]},
    "nvidia": {"input_ids": [1, 2], "output_tokens": 3, "arrival_s": 1.0},
}
WRONG = st.sampled_from(
    [None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "x", "", [], [[1]], {"a": {}}, ["a", -1]]
)


@given(name=st.sampled_from(sorted(JSON_LINES)), field=st.integers(0, 6), wrong=WRONG, data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_wrong_value_in_a_line_is_read_or_refused_in_a_sentence(
    name: str, field: int, wrong: object, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = JSON_LINES[name]
    bad = {**good, list(good)[field % len(good)]: wrong}
    text = lines_of([good, bad, good])
    cut = data.draw(st.one_of(st.just(len(text)), st.integers(1, len(text))))
    path = written(tmp_path_factory.mktemp("lines"), text[:cut], "t.jsonl")
    for skip in (False, True):
        try:
            workload = read_trace(path, format=name, skip_bad_rows=skip).to_workload()
        except WorkloadError as error:
            assert "t.jsonl" in str(error) and len(str(error).splitlines()) == 1  # noqa: PT017, PT018
        else:
            assert workload.input_tokens.min() >= 1


def test_nested_lines_are_refused(tmp_path: Path) -> None:
    deep = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
    with pytest.raises(WorkloadError, match=r"nested too deeply|in no trace format known"):
        read_trace(written(tmp_path, deep, "deep.jsonl"))
    with pytest.raises(WorkloadError, match="nested too deeply"):
        read_trace(written(tmp_path, "[" * 100_000, "deep.json"))


def test_the_line_of_the_rate_has_the_traces_time_axis() -> None:
    series = [0.0] * 60
    series[30] = 1.0
    drawn = bars(series, 48)
    assert (len(drawn), [column for column, mark in enumerate(drawn) if mark != " "]) == (48, [24])
    series[59] = 1.0
    assert bars(series, 48)[-1] == "█"
    assert bars([1.0] * 60, 48) == "█" * 48


def test_bars_scale_to_the_largest() -> None:
    assert bars([0, 1, 8]) == " ▁█"
    assert bars([0.0, 0.0]) == ""


def test_a_line_without_end_and_a_packed_bomb_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    monkeypatch.setattr(files, "_BOMB_BYTES", 100_000)
    header = "num_prefill_tokens,num_decode_tokens\n"
    for name, content, says in (
        ("first.csv", "x" * 2000, "is in no trace format known here"),
        ("later.csv", header + "1,2\n" + "1" * 50_000, "more than 1,000 characters"),
        ("field.csv", header + "1," + "1" * 900 + "\n", "not a whole number"),
        ("blank.csv.gz", "\n" * 1_000_000, "unpacks to more than 200 times its size"),
    ):
        raw = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        with pytest.raises(WorkloadError, match=says):
            read_trace(tmp_path / name)
    (tmp_path / "whole.csv.gz").write_bytes(gzip.compress((header + "1,2\n" * 20_000).encode()))
    assert len(read_trace(tmp_path / "whole.csv.gz")) == 20_000


def test_a_field_that_csv_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGEST_FIELD", 100)
    (tmp_path / "x.csv").write_text("num_prefill_tokens,num_decode_tokens\n" + "1" * 200 + ",5\n")
    before = csv.field_size_limit()
    with pytest.raises(WorkloadError, match=r"line 2: the line is not CSV: field larger than field limit \(100\)"):
        read_trace(tmp_path / "x.csv")
    assert csv.field_size_limit() == before, "the limit is the whole process's"
