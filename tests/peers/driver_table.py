"""Our load driver beside GuideLLM and AIPerf against one server of known timing (`exact_server.py`), and beside what that server did.

Not a test that pytest collects: the tools live in environments of their own, and the answer needs a quiet machine. Run it as

    python -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm
    python -m venv /tmp/aiperf && /tmp/aiperf/bin/pip install aiperf
    python tests/peers/driver_table.py --guidellm /tmp/guidellm/bin/guidellm --aiperf /tmp/aiperf/bin/aiperf

One tool after another measures each load, each at a server of its own that draws the same times for its i-th request. The server's column
is what it wrote down: from the arrival of a request's head to the writing of its tokens. Prints Markdown, a table for each load with
"mean / p50 / p99" in milliseconds, and how far each tool is from its own server's truth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from guidellm_mirror import await_port

ISL, OSL = 32, 64
LATENCIES = ("TTFT", "TPOT", "ITL", "E2E")
RATES = ("req/s", "tok/s")
Figures = dict[str, tuple[float, ...]]
"""Of each latency its mean, median and 99th percentile in ms; of each rate its value."""


@dataclass(frozen=True)
class Load:
    name: str
    requests: int
    streams: int = 0
    rate: float = 0.0


LOADS = (
    Load("1 stream", 24, streams=1),
    Load("8 streams", 160, streams=8),
    Load("32 streams", 640, streams=32),
    Load("Poisson, 16 requests/s", 400, rate=16.0),
)


def summary(values_ms: Any) -> tuple[float, ...]:
    values = np.asarray(values_ms)
    return (float(values.mean()), *(float(value) for value in np.percentile(values, [50, 99])))


def truth(log: Path) -> Figures:
    """What the server wrote down."""
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    arrived = np.asarray([request["arrived_s"] for request in requests])
    written = np.asarray([request["written_s"] for request in requests])  # [requests, tokens]
    seconds = written.max() - arrived.min()
    return {
        "TTFT": summary((written[:, 0] - arrived) * 1e3),
        "TPOT": summary((written[:, -1] - written[:, 0]) / (OSL - 1) * 1e3),
        "ITL": summary(np.diff(written, axis=1).ravel() * 1e3),
        "E2E": summary((written[:, -1] - arrived) * 1e3),
        "req/s": (len(requests) / seconds,),
        "tok/s": (written.size / seconds,),
    }


def ours(url: str, load: Load, folder: Path) -> Figures:
    how = ["--concurrency", str(load.streams)] if load.streams else ["--request-rate", str(load.rate)]
    sizes = ["--isl", str(ISL), "--osl", str(OSL), "--num-requests", str(load.requests), "--warmup", "0"]
    report = folder / "report.json"
    quietly([sys.executable, "-m", "trtllm_bench", "throughput", "--target", url, *how, *sizes, "--report-json", str(report)])
    figures = json.loads(report.read_text())["record"]["figures"]
    found: Figures = {name: tuple(figures[f"{name.lower()}_{statistic}_ms"] for statistic in ("mean", "p50", "p99")) for name in LATENCIES}
    return found | {"req/s": (figures["requests_per_s"],), "tok/s": (figures["output_tokens_per_s"],)}


def guidellm(program: Path, url: str, load: Load, folder: Path) -> Figures:
    """Its ITL is our TPOT, its TPOT is E2E / tokens; gaps between tokens it does not report."""
    profile = f"kind=concurrent,streams={load.streams}" if load.streams else f"kind=poisson,rate={load.rate}"
    report = folder / "guidellm.json"
    arguments = ["--backend", f"kind=openai_http,target={url},model=exact", "--profile", profile, "--disable-progress"]
    arguments += ["--constraint", f"kind=max_requests,count={load.requests}", "--tokenizer", f"kind=hf_auto,model={folder / 'words'}"]
    arguments += ["--data", f"kind=synthetic_text,prompt_tokens={ISL},output_tokens={OSL}", "--output", f"kind=json,path={report}"]
    quietly([str(program), "run", *arguments])
    told = json.loads(report.read_text())["benchmarks"][0]["metrics"]

    def latency(name: str, scale: float = 1.0) -> tuple[float, ...]:
        seen = told[name]["successful"]
        return tuple(value * scale for value in (seen["mean"], seen["median"], seen["percentiles"]["p99"]))

    return {
        "TTFT": latency("time_to_first_token_ms"),
        "TPOT": latency("inter_token_latency_ms"),
        "E2E": latency("request_latency", 1e3),
        "req/s": (told["requests_per_second"]["successful"]["mean"],),
        "tok/s": (told["output_tokens_per_second"]["successful"]["mean"],),
    }


def aiperf(program: Path, url: str, load: Load, folder: Path) -> Figures:
    """Its ITL is our TPOT, its inter-chunk latency our ITL where a chunk is a token."""
    how = ["--concurrency", str(load.streams)] if load.streams else ["--request-rate", str(load.rate), "--arrival-pattern", "poisson"]
    arguments = ["-m", "exact", "-u", url, "--endpoint-type", "completions", "--streaming", *how, "--request-count", str(load.requests)]
    arguments += ["--tokenizer", "local/words", "--synthetic-input-tokens-mean", str(ISL), "--output-tokens-mean", str(OSL)]
    arguments += ["--use-server-token-count", "--artifact-dir", str(folder / "aiperf"), "--ui", "none"]
    quietly([str(program), "profile", *arguments], {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HOME": str(folder)})
    told = json.loads((folder / "aiperf" / "profile_export_aiperf.json").read_text())

    def latency(name: str) -> tuple[float, ...]:
        return tuple(told[name][statistic] for statistic in ("avg", "p50", "p99"))

    return {
        "TTFT": latency("time_to_first_token"),
        "TPOT": latency("inter_token_latency"),
        "ITL": latency("inter_chunk_latency"),
        "E2E": latency("request_latency"),
        "req/s": (told["request_throughput"]["avg"],),
        "tok/s": (told["output_token_throughput"]["avg"],),
    }


def quietly(command: list[str], environment: dict[str, str] | None = None) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (environment or {}))
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of words, as a folder for GuideLLM and in a cache of Hugging Face's form for AIPerf; no network is needed."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "</s>": 1, **{f"w{number}": number + 2 for number in range(998)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    revision = "0" * 40
    cached = folder / "hub" / "hub" / "models--local--words"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    for place in (folder / "words", cached / "snapshots" / revision):
        place.mkdir(parents=True)
        words.save(str(place / "tokenizer.json"))
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
        (place / "tokenizer_config.json").write_text(json.dumps(stated))


def measured(measure: Callable[[str, Load, Path], Figures], load: Load, port: int) -> tuple[Figures, Figures]:
    """(the server's truth, what the tool says) of one load."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        log = folder / "requests.jsonl"
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("exact_server.py")), "--port", str(port), "--log", str(log)]
        )
        try:
            await_port(port)
            told = measure(f"http://127.0.0.1:{port}", load, folder)
            return truth(log), told
        finally:
            server.terminate()
            server.wait()


def row(label: str, cells: list[tuple[float, ...] | None]) -> str:
    def shown(cell: tuple[float, ...] | None) -> str:
        return "-" if cell is None else " / ".join(f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}" for value in cell)

    return f"| {label} | " + " | ".join(shown(cell) for cell in cells) + " |"


def largest(true: Figures, told: Figures) -> str:
    """The largest relative differences from the truth: of a median or mean, of a 99th percentile, of a rate."""
    differences: dict[str, list[tuple[float, str]]] = {"mean or p50": [], "p99": [], "rate": []}
    for name, values in told.items():
        for place, (value, right) in enumerate(zip(values, true[name], strict=True)):
            where = "rate" if len(values) == 1 else "p99" if place == 2 else "mean or p50"
            differences[where].append((value / right - 1, name))
    worst = {where: max(found, key=lambda one: abs(one[0])) for where, found in differences.items()}
    return ", ".join(f"{where} {off:+.1%} ({name})" for where, (off, name) in worst.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", type=Path, help="the guidellm executable; left out without it")
    parser.add_argument("--aiperf", type=Path, help="the aiperf executable; left out without it")
    parser.add_argument("--port", type=int, default=8931)
    given = parser.parse_args()
    tools: dict[str, Callable[[str, Load, Path], Figures]] = {"trtllm-bench": ours}
    if given.guidellm:
        tools["GuideLLM"] = lambda url, load, folder: guidellm(given.guidellm, url, load, folder)
    if given.aiperf:
        tools["AIPerf"] = lambda url, load, folder: aiperf(given.aiperf, url, load, folder)
    for load in LOADS:
        results = {name: measured(measure, load, given.port) for name, measure in tools.items()}
        true = results["trtllm-bench"][0]
        print(f"\n| {load.name} | server | {' | '.join(results)} |\n|---|{'--:|' * (len(results) + 1)}")
        for metric in (*LATENCIES, *RATES):
            print(row(metric, [true[metric], *(told.get(metric) for _, told in results.values())]))
        print(f"\n{load.requests} requests, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; off by at most:")
        for name, (own_truth, told) in results.items():
            print(f"- {name}: {largest(own_truth, told)}", flush=True)


if __name__ == "__main__":
    main()
