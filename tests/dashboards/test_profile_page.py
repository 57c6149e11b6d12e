"""The page of a profile: what it holds, and in Chromium that its scripts draw all of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trtllm_dashboards.errors import DashboardError, OutputError
from trtllm_dashboards.html import render as dashboard
from trtllm_dashboards.profile_page import page, render

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def kernel(role: str, time_us: float, flop: float, moved: float) -> dict[str, Any]:
    row = {"role": role, "op": "linear", "kernel": f"kernel of </script> {role}", "calls": 2, "time_us": time_us, "share": time_us / 100}
    return row | {"bytes": moved, "flop": flop, "compute": "bf16", "ceiling_share": 0.5, "bound": "memory"}


def profile() -> dict[str, Any]:
    step = {"number": 4, "phase": "decode", "tokens": 8, "sequences": 8, "kv_tokens": 900, "graph": True, "start_us": 0.0}
    return {
        "cell": {"label": "tiny b8 <1>"},
        "device": "GPU",
        "collector": "test",
        "ceilings": {"bytes_per_s": 3e12, "flops_per_s": {"bf16": 8e14}},
        "kernels": [kernel("layers.*.mlp.down_proj", 60.0, 1e9, 1e8), kernel("lm_head", 30.0, 2e9, 3e7), kernel("sample", 5.0, 0.0, 1e5)],
        "roles": {"layers.*.mlp.down_proj": 60.0, "lm_head": 30.0, "sample": 5.0},
        "steps": [step | {"span_us": 100.0, "busy_us": 95.0, "gap_inside_us": 3.0, "gap_before_us": 2.0}],
        "timeline": [{"name": "k", "op": "lm_head", "role": "lm_head", "start_us": 0.0, "duration_us": 30.0, "step": 0}],
        "free_step_us": 99.0,
        "recorded_step_us": 100.0,
        "notes": ["a note"],
        "command": "trtllm-bench profile",
        "started_at": "2026-01-01",
    }


def test_the_page_asks_nothing_of_the_network_and_its_data_cannot_end_its_script() -> None:
    text = page(profile())
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert text.count("</script>") == 2
    assert len(text) < 60_000


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        render(profile(), tmp_path / "file" / "page.html")


def test_a_profile_kept_without_its_page_gets_it_when_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps(profile()))
    asked = dashboard([str(folder)], tmp_path / "asked.html")
    assert asked.read_text() == page(profile())
    (folder / "profile.json").write_text('{"kernels"')
    with pytest.raises(DashboardError, match=r"profile\.json cannot be read as a profile"):
        dashboard([str(folder)], tmp_path / "asked.html")


@pytest.mark.browser
def test_every_part_is_drawn(tmp_path: Path) -> None:
    browser = os.environ.get("TRTLLM_BENCH_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.fail("The page is tested in a browser and none is installed: apt-get install chromium, or set TRTLLM_BENCH_CHROMIUM.")
    path = render(profile(), tmp_path / "profile.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    drawn = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    body = drawn.partition("<main>")[2].partition('id="data"')[0]
    assert body.count("<circle") == 2
    assert "bf16 800 TFLOP/s" in body
    assert body.count("<tr>") == 2 + 1 + 3
    assert "gaps between steps 2.0%" in body
    assert "a note" in body
