"""The components depend on each other one way only (docs/architecture.md), and what has to stay light imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "trtllm_kernels": ROOT / "kernels/trtllm_kernels",
    "trtllm_engines": ROOT / "engines/trtllm_engines",
    "trtllm_workloads": ROOT / "workloads/trtllm_workloads",
    "trtllm_results": ROOT / "results/trtllm_results",
    "trtllm_dashboards": ROOT / "dashboards/trtllm_dashboards",
    "trtllm_bench": ROOT / "trtllm_bench",
}
ALLOWED = {
    "trtllm_kernels": set(),
    "trtllm_engines": {"trtllm_kernels"},
    "trtllm_workloads": set(),
    "trtllm_results": set(),
    "trtllm_dashboards": {"trtllm_results"},
    "trtllm_bench": {"trtllm_kernels", "trtllm_engines", "trtllm_workloads", "trtllm_results", "trtllm_dashboards"},
}
TORCH_FREE = ("trtllm_workloads", "trtllm_results", "trtllm_dashboards")


def imports(path: Path) -> Iterator[str]:
    """Top-level names of every absolute import in a file, those inside functions and `TYPE_CHECKING` blocks included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FOLDERS)
def test_a_component_imports_only_those_below_it(package: str) -> None:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files, f"no source in {FOLDERS[package]}"
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if name in FOLDERS and name != package and name not in ALLOWED[package]
    }
    assert not wrong


@pytest.mark.parametrize("package", TORCH_FREE)
def test_workloads_results_and_dashboards_never_import_torch(package: str) -> None:
    wrong = {str(path.relative_to(ROOT)) for path in FOLDERS[package].rglob("*.py") if {"torch", "triton"} & set(imports(path))}
    assert not wrong


def test_every_top_level_package_is_known_here() -> None:
    known = set(FOLDERS.values())
    packages = {path.parent for path in ROOT.glob("*/trtllm_*/__init__.py")} | {path.parent for path in ROOT.glob("trtllm_*/__init__.py")}
    assert packages == known


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from trtllm_bench.__main__ import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(run.stderr.strip().splitlines()[-1]))
    assert not loaded & {"torch", "triton", "numpy", "pandas", "pyarrow", "matplotlib", "scipy", "plotly", "aiohttp", "pydantic"}
    assert "trtllm_bench.app" in loaded
