"""Our HTTP target against `guidellm mock-server`, a mirror whose TTFT and inter-token latency are set: are our figures the mirror's?

Not a test that pytest collects: GuideLLM lives in an environment of its own, and the answer needs a quiet machine. Run it as

    python -m venv /tmp/guide && /tmp/guide/bin/pip install guidellm
    python tests/peers/guidellm_mirror.py --guidellm /tmp/guide/bin/guidellm

The mirror adds something of its own (its event loop sleeps the set time and then works), so beside the set values stands what a bare socket
reader, in a process of its own, sees of the same mirror under the same load. Streams start evenly spaced: sixty-four at once would measure
how fast the mirror starts sixty-four answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

TTFT_MS, ITL_MS, TOKENS = 100.0, 10.0, 64
STREAMS = (1, 8, 64)
LIMIT = 0.03


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", type=Path, help="the guidellm executable")
    parser.add_argument("--port", type=int, default=8913)
    parser.add_argument("--bare", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.port, arguments.bare)))
        return 0
    flags = ["--port", str(arguments.port), "--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS), "--output-tokens", str(TOKENS)]
    server = subprocess.Popen(
        [str(arguments.guidellm), "mock-server", "--host", "127.0.0.1", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_port(arguments.port)
        return report([measure(arguments.port, streams) for streams in STREAMS])
    finally:
        server.terminate()
        server.wait()


def await_port(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("the mirror did not start within a minute")


def measure(port: int, streams: int) -> dict[str, float]:
    """Medians in ms at about `streams` at a time, ours and the bare reader's."""
    import numpy as np

    from trtllm_bench.load.driver import Drive, run_load
    from trtllm_bench.targets.http import HttpTarget
    from trtllm_results.metrics import requests as metrics
    from trtllm_workloads.synthetic import fixed

    seconds_each = (TTFT_MS + ITL_MS * (TOKENS - 1)) / 1e3
    rate, requests = streams / seconds_each, max(24, 8 * streams)
    workload = fixed(requests, 32, TOKENS).with_arrivals(np.arange(requests) / rate)
    beside = subprocess.Popen(
        [sys.executable, __file__, "--port", str(port), "--bare", str(max(5, int(requests / streams)))], stdout=subprocess.PIPE, text=True
    )
    target = HttpTarget(f"http://127.0.0.1:{port}", decode=lambda ids: " ".join("word" for _ in ids))
    result = run_load(workload.requests(), target, Drive(open_loop=True, warmup_requests=max(2, streams)))
    log = result.measured
    assert log.ok.all(), result.failures[:1]
    seen = json.loads(beside.communicate()[0])
    return {
        "streams": streams,
        "ttft": float(np.median(metrics.ttft(log))) * 1e3,
        "itl": float(np.median(metrics.itl(log))) * 1e3,
        "lag_p99": metrics.figures(log)["lag_p99_ms"],
        "bare_ttft": seen["ttft"],
        "bare_itl": seen["itl"],
    }


def bare(port: int, requests: int) -> dict[str, float]:
    """Medians in ms of one stream after another, by a socket and nothing else."""
    body = {"model": "x", "prompt": " ".join(["word"] * 32), "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: mirror\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    first, gaps = [], []
    for _ in range(requests):
        with socket.create_connection(("127.0.0.1", port)) as stream:
            began = time.perf_counter()
            stream.sendall(head.encode() + data)
            times: list[float] = []
            tail = b""
            while b"[DONE]" not in tail:
                piece = stream.recv(65536)
                times += [time.perf_counter()] * piece.count(b'"text":')
                tail = (tail + piece)[-256:]
        first.append(times[0] - began)
        gaps += [after - before for before, after in itertools.pairwise(times[:TOKENS])]
    return {"ttft": statistics.median(first) * 1e3, "itl": statistics.median(gaps) * 1e3}


def report(rows: list[dict[str, float]]) -> int:
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"mirror set to TTFT {TTFT_MS:g} ms, ITL {ITL_MS:g} ms; medians in ms; {busy}")
    print(f"{'streams':>8}{'TTFT':>9}{'bare':>9}{'ITL':>9}{'bare':>9}{'lag p99':>9}{'of set':>16}{'of bare':>16}")
    worst = 0.0
    for row in rows:
        of_set = (row["ttft"] / TTFT_MS - 1, row["itl"] / ITL_MS - 1)
        of_bare = (row["ttft"] / row["bare_ttft"] - 1, row["itl"] / row["bare_itl"] - 1)
        worst = max(worst, *map(abs, of_bare))
        numbers = "".join(f"{row[name]:>9.2f}" for name in ("ttft", "bare_ttft", "itl", "bare_itl", "lag_p99"))
        print(f"{row['streams']:>8.0f}{numbers}{of_set[0]:>+9.1%}{of_set[1]:>+7.1%}{of_bare[0]:>+9.1%}{of_bare[1]:>+7.1%}")
    print(f"largest deviation from the bare reader: {worst:.1%} (limit {LIMIT:.0%})")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
