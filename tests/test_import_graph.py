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


def test_a_scripted_target_is_measured_without_torch(tmp_path: Path) -> None:
    flags = ["throughput", "--target", "fake", "--isl", "8", "--osl", "2", "--num-requests", "2", "--report-json", "r.json"]
    code = f"import sys; from trtllm_bench.__main__ import main; main({flags}); print('torch' in sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (tmp_path / "r.json").is_file()
    assert run.stderr.strip().splitlines()[-1] == "False"


LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "trtllm_bench": (
        ("__main__",),
        ("app",),
        ("commands",),
        ("sweep", "tune"),
        ("analysis",),
        ("profiling",),
        ("micro",),
        ("measure",),
        ("targets",),
        ("load",),
        ("roofline", "tracing", "telemetry", "build_progress"),
        ("spec", "machine"),
        ("errors", "interrupts"),
    ),
    "trtllm_results": (
        ("gate", "cost"),
        ("compare", "importers", "trackers"),
        ("store", "versions"),
        ("record",),
        ("metrics", "plausibility"),
        ("stats", "gpus", "model_sizes", "precision_names"),
        ("errors",),
    ),
    "trtllm_engines": (
        ("__init__",),
        ("accuracy",),
        ("llm", "calibration"),
        ("runtime",),
        ("engine",),
        ("checkpoints",),
        ("compiler",),
        ("quantization",),
        ("models",),
        ("documents", "memory", "cache_locks", "partial_folder"),
        ("errors",),
    ),
    "trtllm_kernels": (
        ("references",),
        ("launch",),
        ("compile",),
        ("lowering",),
        ("tactics",),
        ("cuda_kernels", "triton_kernels"),
        ("formats",),
        ("dialect",),
        ("discovery", "files"),
        ("errors",),
    ),
}
"""Rooms of a component, from the top: a room imports from those below it, never from beside or above."""

UPWARD = {
    "trtllm_engines": {
        ("quantization", "checkpoints"),  # a scheme's file holds its recipes of weights
        ("quantization", "compiler"),  # and its passes
    },
}
"""Imports that still point upwards; the list only gets shorter."""


def rooms_imported(package: str, path: Path) -> set[str]:
    """Rooms of its own component that a file imports from, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{package}.{alias.name}" for alias in node.names} if node.module == package else {node.module}
    rooms = {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return {room for room in rooms if (FOLDERS[package] / room).is_dir() or (FOLDERS[package] / f"{room}.py").is_file()}


@pytest.mark.parametrize("package", LAYERS)
def test_a_room_imports_only_from_rooms_below_it(package: str) -> None:
    place = {room: depth for depth, rooms in enumerate(LAYERS[package]) for room in rooms}
    files = {path: path.relative_to(FOLDERS[package]).parts[0].removesuffix(".py") for path in FOLDERS[package].rglob("*.py")}
    present = {room for path, room in files.items() if room in place or path.read_text()}
    assert present <= set(place), f"rooms without a place among the layers: {sorted(present - set(place))}"
    wrong = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path, room in files.items()
        for other in rooms_imported(package, path) - {room}
        if place[other] <= place[room] and (room, other) not in UPWARD.get(package, set())
    }
    assert not wrong
