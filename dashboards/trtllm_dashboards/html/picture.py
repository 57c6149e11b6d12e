"""The top of a page as PNG, drawn by an installed Chromium: for documents and chats that show no HTML."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from trtllm_dashboards.errors import OutputError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell", "chrome")
VARIABLE = "TRTLLM_BENCH_CHROMIUM"
WIDTH, HEIGHT = 1280, 1000
LIMIT_S = 120


def picture(page: Path, out: Path) -> Path:
    """Writes `out`, 1280 x 1000 pixels in the light theme. Raises `OutputError` without a browser, and where it draws nothing."""
    browser = os.environ.get(VARIABLE) or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise OutputError(f"no Chromium is installed to draw {out} with; install the package chromium, or set {VARIABLE} to one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trtllm-bench-picture-") as folder:
        drawn = Path(folder) / "page.png"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            f"--user-data-dir={folder}/profile",
        ]
        flags += [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000", f"--screenshot={drawn}"]
        try:
            subprocess.run([browser, *flags, page.resolve().as_uri()], capture_output=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutputError(f"{browser} did not draw {page}: {error}") from error
        if not drawn.is_file():
            raise OutputError(f"{browser} drew nothing of {page}; name another one in {VARIABLE}")
        shutil.copyfile(drawn, out)
    return out
