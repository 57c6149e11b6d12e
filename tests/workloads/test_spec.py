"""Workload files: the shipped ones, and what a wrong one is told."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_workloads import WorkloadError
from trtllm_workloads.open_workload import data_folder, open_workload, shipped
from trtllm_workloads.traces import read_trace

GOOD = 'requests = 20\ninput = { kind = "fixed", tokens = 8 }\noutput = { kind = "uniform", low = 2, high = 4 }\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_promised_workloads_ship() -> None:
    assert {"chat", "summarization", "code", "long-context", "agentic", "offline-batch"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_workload_opens_reproducibly_and_justifies_itself(name: str) -> None:
    first, second = (open_workload(name, requests=50) for _ in range(2))
    assert len(first) == 50
    assert first.content_hash == second.content_hash
    assert (data_folder("specs") / f"{name}.toml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "isl", "osl"),
    [("chat", 1155, 211), ("summarization", 2443, 79), ("code", 2048, 28), ("offline-batch", 2340, 439), ("cnn-dailymail", 864, 128)],
)
def test_shipped_lengths_have_the_means_their_comment_claims(name: str, isl: float, osl: float) -> None:
    spec = tomllib.loads((data_folder("specs") / f"{name}.toml").read_text())
    assert spec["name"] == name
    workload = open_workload(name, requests=20_000)
    assert workload.input_tokens.mean() == pytest.approx(isl, rel=0.12)
    assert workload.output_tokens.mean() == pytest.approx(osl, rel=0.12)


def test_agentic_prompts_grow_within_sessions() -> None:
    workload = open_workload("agentic", requests=4000)
    assert workload.input_tokens.mean() == pytest.approx(8383, rel=0.05)
    assert workload.input_tokens.max() <= 32768
    assert workload.turn is not None
    assert workload.turn.max() > 4


def test_every_table_reaches_the_workload(tmp_path: Path) -> None:
    extra = (
        'arrivals = { kind = "poisson", rate = 5.0 }\npriorities = [1, 1]\nlora = { count = 2 }\nslo = { ttft_ms = 100 }\n'
        "prefixes = { levels = [[1, 4]] }\nvocab_size = 500\nseed = 3\n"
    )
    workload = open_workload(written(tmp_path, GOOD + extra))
    assert workload.name == "mine"
    assert len(workload.arrival_s) == 20
    assert workload.priority is not None
    assert workload.lora_id is not None
    assert set(workload.lora_id.tolist()) == {0, 1}
    assert workload.slo_ms is not None
    requests = workload.requests()
    assert len({tuple(r.prompt[:4]) for r in requests}) == 1
    assert max(r.prompt.max() for r in requests) < 500


def test_flags_replace_the_files_values(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert len(open_workload(path, requests=5)) == 5
    assert open_workload(path, seed=1).content_hash != open_workload(path).content_hash


def test_a_trace_with_its_filters(tmp_path: Path) -> None:
    sample = data_folder("samples") / "azure_conversation_400.csv"
    text = f'[trace]\npath = "{sample}"\nwindow_s = [10, 60]\nmax_total = 1000\ntime_scale = 0.5\n'
    workload = open_workload(written(tmp_path, text))
    assert (workload.input_tokens + workload.output_tokens).max() <= 1000
    assert workload.name == "mine", "its file's name, not the trace's"
    assert workload.arrival_s.max() <= 25
    assert 20 < len(workload) < 300


def test_lengths_drawn_from_a_trace_keep_its_pairs(tmp_path: Path) -> None:
    sample = data_folder("samples") / "azure_conversation_400.csv"
    text = f'requests = 300\nlengths = {{ path = "{sample}", max_input = 500 }}\narrivals = {{ kind = "constant", rate = 2.0 }}\n'
    workload = open_workload(written(tmp_path, text))
    trace = read_trace(sample)
    known = set(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    assert set(zip(workload.input_tokens.tolist(), workload.output_tokens.tolist(), strict=True)) <= known
    assert workload.input_tokens.max() <= 500
    assert workload.arrival_s[-1] == 149.5


def test_a_table_may_be_written_as_its_flag_is(tmp_path: Path) -> None:
    tables = open_workload(written(tmp_path, GOOD + 'arrivals = { kind = "gamma", rate = 5, burstiness = 0.5 }'))
    flags = 'requests = 20\ninput = 8\noutput = "uniform:2,high=4"\narrivals = "gamma:5,0.5"'
    assert open_workload(written(tmp_path, flags)).content_hash == tables.content_hash


def test_a_column_of_a_trace_is_a_distribution(tmp_path: Path) -> None:
    sample = data_folder("samples") / "sharegpt_lengths_500.csv"
    table = f'kind = "empirical", trace = "{sample}", column = "output"'
    workload = open_workload(written(tmp_path, GOOD.replace('kind = "fixed", tokens = 8', table)))
    assert set(workload.input_tokens.tolist()) <= set(read_trace(sample).output_tokens.tolist())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("requests = [", "not valid TOML"),
        (GOOD + "sead = 3", r"sead is not a setting of a workload; did you mean seed\?"),
        (GOOD.replace("requests = 20", ""), "requests is missing"),
        ("requests = 3", r"either \[trace\], or \[lengths\], or \[input\] and \[output\]"),
        ('requests = 3\ncorrelation = 0.5\nlengths = { path = "x.csv" }', "correlation goes with"),
        (GOOD.replace('kind = "fixed", tokens = 8', 'kind = "empirical"'), "empirical lengths take trace, column"),
        ('requests = 3\ninput = { kind = "fixed", tokens = 8 }', "one is missing"),
        (GOOD + "requests_per_s = 4", "requests_per_s is not a setting"),
        (
            GOOD.replace("tokens = 8", "value = 8"),
            r"input\.value is not a setting of a workload; known there are kind, tokens, low, high, mean",
        ),
        (GOOD + "slo = { rate = 5 }", r"slo\.rate is not a setting of a workload; known there are ttft_ms, tpot_ms, e2e_ms$"),
        (GOOD + 'arrivals = "gama:5"', r"arrivals: 'gama' is no arrival process; there are at-once"),
        (GOOD + f'arrivals = "{"x" * 9999}"', r"arrivals: 'x{40}\.\.\.' is no arrival process; there are at-once"),
        (GOOD + f'arrivals = "poisson:{"1," * 9999}"', r"arrivals: 'poisson:[1,]{32}\.\.\.': poisson takes rate, not '1'$"),
        (GOOD + 'conversations = { turns = "uniform:1" }', r"conversations\.turns: 'uniform:1': uniform needs high"),
        (GOOD.replace("tokens = 8", "mean = 8"), "fixed lengths take tokens; given: mean"),
        (GOOD.replace("low = 2", "low = 0"), "at least 1"),
        (GOOD + 'arrivals = { kind = "poisson" }', "poisson arrivals take rate"),
        (GOOD + 'arrivals = { kind = "poisson", rate = -1 }', "rate is -1"),
        (GOOD + 'trace = { path = "x.csv" }', "either"),
        ('trace = { path = "x.csv" }', "cannot read trace"),
        (GOOD.replace("requests = 20", "requests = 0"), "requests is 0; it must be at least 1"),
        (GOOD + "prefixes = { levels = [[1, 4]] }\nconversations = { turns = { kind = 'fixed', tokens = 2 } }", "cannot be combined"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_field(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        open_workload(written(tmp_path, text))


WHOLE = (
    "requests = 20\nseed = 3\nvocab_size = 500\ncorrelation = 0.5\npriorities = [1, 2]\n"
    'input = { kind = "lognormal", mean = 20, stdev = 10, low = 1, high = 99 }\n'
    'output = { kind = "mixture", weights = [1, 2], components = [{ kind = "fixed", tokens = 4 }, '
    '{ kind = "zipf", alpha = 1.1, low = 1, high = 9 }] }\n'
    'arrivals = { kind = "on-off", rate = 5.0, on_s = 1, off_s = 2, off_rate = 0.5 }\nslo = { ttft_ms = 100 }\n'
    'lora = { count = 2, pick = "zipf", alpha = 1.5, share = 0.5 }\nprefixes = { levels = [[1, 4], [2, 3]], pick = "zipf", alpha = 1.0 }\n'
)
VALUES = re.findall(r"= *([\d.]+|\"[a-z-]+\"|\[[\d, \[\]]+\])", WHOLE)
WRONG = [
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-308",
    "9223372036854775808",
    '"x"',
    '""',
    "true",
    "[]",
    "[[]]",
    "{ a = 1 }",
    "2020-01-01",
]


@given(
    place=st.integers(0, len(VALUES) - 1),
    wrong=st.sampled_from([*WRONG, "[" * 5000 + "]" * 5000, "9" * 5000]),
    cut=st.integers(0, 4 * len(WHOLE)),
)
@settings(max_examples=150, deadline=None)
def test_a_wrong_value_is_built_or_refused_in_a_sentence(
    place: int, wrong: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pieces = WHOLE.split(VALUES[place])
    text = (VALUES[place].join(pieces[:-1]) + wrong + pieces[-1])[: max(cut, 1)]
    path = written(tmp_path_factory.mktemp("spec"), text)
    try:
        workload = open_workload(path)
    except WorkloadError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert len(str(error)) < 500  # noqa: PT017
        assert "Input should" not in str(error)  # noqa: PT017
    else:
        assert np.isfinite(workload.arrival_s).all()
        assert workload.input_tokens.min() >= 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD.replace("tokens = 8", "tokens = 1e30"), "input.tokens is 1e[+]30; it must be a whole number"),
        (GOOD.replace("tokens = 8", "tokens = nan"), "input.tokens is nan; it must be a"),
        (GOOD.replace('kind = "fixed"', 'kind = "pareto"'), "input.kind is 'pareto'; it must be one of fixed, uniform"),
        (GOOD + "vocab_size = 1", "vocab_size is 1; it must be at least 2"),
        (GOOD + 'name = "a"\ncorrelation = 2', "correlation is 2; it must be at most 1"),
        (GOOD + 'arrivals = { kind = "poisson", rate = inf }', "arrivals.rate is inf; it must be a finite number"),
        (GOOD + 'arrivals = { kind = "poisson", rate = 1e-300 }', "rate is 1e-300; it must lie between"),
        (GOOD + 'arrivals = { kind = "poisson", rate = 5, burstiness = 0.25 }', "poisson arrivals take rate; given: rate, burstiness"),
        (GOOD + "priorities = 3", "priorities is 3; it must be a list"),
        (GOOD + "lora = 3", "lora is 3; it must be a table"),
        (GOOD + "seed = true", "seed is True; it must be a whole number"),
        (GOOD.replace("requests = 20", "requests = 1_000_000_000"), "requests is 1000000000; it must be at most 1e[+]08"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_bounds_and_types_are_told_in_the_projects_words(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        open_workload(written(tmp_path, text))


def test_open_takes_datasets_traces_and_names(tmp_path: Path) -> None:
    assert len(open_workload(data_folder("samples") / "mooncake_conversation_200.jsonl", requests=7)) == 7
    data = tmp_path / "d.jsonl"
    data.write_text(
        '{"task_id":0,"input_ids":[1,2],"output_tokens":3,"arrival_s":1.0}\n{"input_ids":[1],"output_tokens":1,"arrival_s":4.0}\n'
    )
    np.testing.assert_allclose(open_workload(data, time_scale=0.5).arrival_s, [0.5, 2.0])
    with pytest.raises(WorkloadError, match="no shipped workload of that name"):
        open_workload("chats")
    with pytest.raises(WorkloadError, match="is a folder"):
        open_workload(tmp_path)
