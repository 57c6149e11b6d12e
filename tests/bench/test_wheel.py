"""The wheel holds every package and the data files they read; built here as pip builds it, without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    "trtllm_kernels/tactics": ROOT / "kernels/tactics",
    "trtllm_engines/recipes": ROOT / "engines/recipes",
    "trtllm_workloads/specs": ROOT / "workloads/specs",
    "trtllm_workloads/samples": ROOT / "workloads/samples",
    "trtllm_results/published": ROOT / "results/published",
}


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "trtllm-bench = trtllm_bench.__main__:main" in entry_points
    sources = [
        path
        for folder in ("kernels", "engines", "workloads", "results", "dashboards")
        for kind in ("py", "cu", "cuh")
        for path in ROOT.glob(f"{folder}/trtllm_*/**/*.{kind}")
    ]
    assert {path.suffix for path in sources} == {".py", ".cu", ".cuh"}
    assert {"/".join(path.relative_to(ROOT).parts[1:]) for path in sources} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "trtllm_bench").rglob("*.py")} <= names
    step_models = {str(path.relative_to(ROOT)) for path in (ROOT / "trtllm_bench").rglob("*.toml")}
    assert {"trtllm_bench/analysis/step_models/h100.toml", "trtllm_bench/analysis/prediction_errors.toml"} <= step_models <= names
    for inside, folder in DATA.items():
        expected = {f"{inside}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
        assert expected, f"{folder} is empty"
        assert expected <= names
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]
