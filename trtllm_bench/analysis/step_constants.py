"""The step model's constants, one file per GPU: `step_models/<gpu>.toml`. Each has its unit, its record and the command that made that.

A GPU without a file is predicted with the H100's constants, and what its data sheet says (`kernel_times.py`); `StepConstants.note` says so.

Constants are also of an engine: the H200's follow its kernels of today, the H100's those of the revisions that ran there. A recorded run
takes the constants of its revision (`[engine]` lists them). So an earlier run on an H200 is held against the H100's constants, and not
against kernels that it did not have. Of the revisions listed, `[engine]` also says which lacked what today's engine has (`LACKING`).

Constants of quantized GEMMs (`ONE_FILE`), whose kernels are not cuBLASLt's, follow runs of one GPU only, the H200. A plan with such GEMMs
is predicted with the whole of that GPU's file on any GPU; `note` says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trtllm_bench.analysis.link_curve import LinkCurve
from trtllm_bench.errors import BenchError
from trtllm_kernels.dialect.packing import PACKED_INPUTS
from trtllm_results.gpus import gpu_class
from trtllm_results.store.document import read_document

FOLDER = Path(__file__).parent / "step_models"
DEFAULT_GPU = "h100"
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "bandwidth_share": ("gemv", "skinny", "gemm", "attention", "rows"),
    "stream_tb_per_s": ("gemv", "skinny", "gemm", "attention", "rows"),
    "peak_share": ("gemv", "skinny", "gemm", "attention"),
    "clock_share": ("fp8", "bf16", "int8", "attention"),
    "energy_pj": ("fp8", "bf16", "int8", "vector", "byte", "kv_byte", "dram_byte"),
    "power": ("static_w", "clock_w", "exponent", "held", "fixed_exponent"),
    "kernel_us": ("gemv", "skinny", "gemm", "attention", "merge", "rows"),
    "pdl_us": ("gemv", "skinny", "rows"),
    "prefill_time": (
        "uncached_triton",
        "cached_bf16",
        "cached_fp8",
        "cached_bf16_triton",
        "cached_fp8_triton",
        "in_fp8",
        "continued_in_fp8",
    ),
    "concurrent": ("shorter_share", "sms"),
    "communication": ("one_shot_row_us", "wait_us", "wait_row_us"),
    "step": ("between_us", "launch_us", "host_us", "end_us", "begin_us", "norm"),
}
PACKED = (*PACKED_INPUTS, *(f"{name}_fp8" for name, inputs in PACKED_INPUTS.items() if "fp8" in inputs))
"""Formats of packed weights. With fp8 inputs (`_fp8`) a kernel decodes them into other numbers than with wide inputs."""
ONE_FILE: Mapping[str, tuple[str, ...]] = {
    "decoding_cycles": (*PACKED, "scale"),
    "quantized_share": ("packed_bf16", "packed_fp8", "row_scaled_int8", "row_scaled_fp8", "skinny_int8"),
    "quantized_us": ("packed",),
    "quantized_pj": ("code", "flop_share"),
    "attention": ("pair_us", "tile_us", "even_bandwidth_share", "even_stream_tb_per_s", "even_us", "even_pair_us"),
}
"""Sections, by name, that only the file of `QUANTIZED_GPU` has: it alone is of today's engine."""
QUANTIZED_GPU = "h200"
FIELDS = ("value", "unit", "what", "record", "command")
LINKS = ("gpus", "row_elements", "bytes", "us", "copy_bytes_per_s", "what", "record", "command")
"""Fields of the section `all_reduce`, a curve as `trtllm-bench ceilings` measures it."""
LACKING = ("requests_first", "norms_apart", "keys_by_tiles")
"""Lists, in the section `engine`, of revisions that worked in a former way. `StepConstants` says what each means."""
ENGINE = ("earlier", "revisions", *LACKING, "what")
"""Fields of the section `engine`."""


@dataclass(frozen=True)
class StepConstants:
    """Each mapping is a section of the file, its values by name; the files say what they are, and in which unit."""

    gpu: str
    fitted: bool
    earlier: bool
    """Of an engine with a GEMV at one token, rope in a kernel of its own, and all rows in the last layer."""
    revisions: tuple[str, ...]
    """Short ones, of the runs recorded with that engine."""
    requests_first: bool
    """Whether the engine's pipelines launched the next step only after the host had handled the requests that ended in the last. Today the
    next step comes first."""
    norms_apart: bool
    """Whether each norm was a kernel of its own in steps of any size. Today products of few tokens take it."""
    keys_by_tiles: bool
    """Whether decode attention divided long sequences by a fixed number of blocks, or was Triton's. Today each SM has an equal share."""
    engine: str
    """What is to be said of that engine; "" of today's."""
    bandwidth_share: Mapping[str, float]
    stream_tb_per_s: Mapping[str, float]
    peak_share: Mapping[str, float]
    clock_share: Mapping[str, float]
    energy_pj: Mapping[str, float]
    power: Mapping[str, float]
    kernel_us: Mapping[str, float]
    pdl_us: Mapping[str, float]
    prefill_time: Mapping[str, float]
    concurrent: Mapping[str, float]
    communication: Mapping[str, float]
    step: Mapping[str, float]
    decoding_cycles: Mapping[str, float]
    quantized_share: Mapping[str, float]
    quantized_us: Mapping[str, float]
    quantized_pj: Mapping[str, float]
    attention: Mapping[str, float]
    all_reduce: LinkCurve
    note: str = ""
    """What is to be said beside a prediction with these constants; "" where they follow the GPU's own kernels."""


def constants_for(device: str, revision: str = "", quantized: bool = False) -> StepConstants:
    """Of the GPU of this name, as its data sheet's entry has it or its driver gives it (`NVIDIA H100 80GB HBM3`); of a recorded run of
    `revision`, those that follow the engine which ran. `quantized`: of a plan with quantized GEMMs; a known
    `revision` takes precedence."""
    own = gpu_class(device).lower()
    files = sorted(FOLDER.glob("*.toml"))
    gpu = own if any(path.stem == own for path in files) else DEFAULT_GPU
    ran = (path.stem for path in files if _lists(path, "revisions", revision))
    gpu = next(ran, QUANTIZED_GPU if quantized else gpu)
    path = FOLDER / f"{gpu}.toml"
    return _read(path, "" if gpu == own else device, tuple(field for field in LACKING if _lists(path, field, revision)))


def _lists(path: Path, field: str, revision: str) -> bool:
    """Whether a list of short revisions in the section `engine` holds `revision`."""
    return bool(revision) and revision.startswith(tuple(_engine(path)[field]))


def read_anew() -> None:
    """Files that were rewritten are read again."""
    _read.cache_clear()
    _engine.cache_clear()


@cache
def _engine(path: Path) -> Mapping[str, Any]:
    engine: Mapping[str, Any] = read_file(path)["engine"]
    return engine


@cache
def _read(path: Path, stands_for: str, lacking: tuple[str, ...]) -> StepConstants:
    data = read_file(path)
    gpu = str(data["gpu"])
    quantized = data if gpu == QUANTIZED_GPU else read_file(path.with_name(f"{QUANTIZED_GPU}.toml"))
    sections = [(data, *section) for section in SECTIONS.items()] + [(quantized, *section) for section in ONE_FILE.items()]
    values = {section: {name: float(table[section][name]["value"]) for name in names} for table, section, names in sections}
    note = f"the step model's constants are not fitted to {stands_for}: they are the {gpu.upper()}'s" if stands_for else ""
    links, engine = data["all_reduce"], data["engine"]
    by_bytes = {str(size): us for size, us in zip(links["bytes"], links["us"], strict=True)}
    curve = LinkCurve.of(links["gpus"], links["row_elements"], by_bytes, links["copy_bytes_per_s"])
    return StepConstants(
        gpu=gpu,
        fitted=not stands_for,
        earlier=engine["earlier"],
        revisions=tuple(engine["revisions"]),
        requests_first="requests_first" in lacking,
        norms_apart="norms_apart" in lacking,
        keys_by_tiles="keys_by_tiles" in lacking,
        engine=engine["what"],
        note=note,
        all_reduce=curve,
        **values,
    )


def read_file(path: Path) -> Mapping[str, Any]:
    """A file of constants, whole. Raises `BenchError` naming what is missing, unknown or not a number."""
    try:
        data: dict[str, Any] = read_document(path, tomllib.loads)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as TOML ({error})") from None
    known = {**SECTIONS, **ONE_FILE} if data.get("gpu") == QUANTIZED_GPU else SECTIONS
    expected = {f"{section}.{name}" for section, names in known.items() for name in names}
    sections = {name: table for name, table in data.items() if isinstance(table, dict) and name not in ("all_reduce", "engine")}
    given = {f"{section}.{name}" for section, table in sections.items() for name in table}
    if given != expected:
        missing, unknown = ", ".join(sorted(expected - given)) or "nothing", ", ".join(sorted(given - expected)) or "nothing"
        raise BenchError(f"{path} lacks {missing} and has {unknown} that is unknown")
    for name in sorted(expected):
        section, _, key = name.partition(".")
        constant = data[section][key]
        if not isinstance(constant, dict) or set(constant) != set(FIELDS) or not isinstance(constant["value"], int | float):
            raise BenchError(f"{path}: {name} must have {', '.join(FIELDS)}, and its value must be a number")
    links = data.get("all_reduce")
    if not isinstance(links, dict) or set(links) != set(LINKS) or len(links["bytes"]) != len(links["us"]):
        raise BenchError(f"{path}: all_reduce must have {', '.join(LINKS)}, and as many us as bytes")
    engine = data.get("engine")
    if not isinstance(engine, dict) or set(engine) != set(ENGINE):
        raise BenchError(f"{path}: engine must have {', '.join(ENGINE)}")
    for name in LACKING:
        if not set(engine[name]) <= set(engine["revisions"]):
            raise BenchError(f"{path}: engine.{name} may list only revisions of the engine")
    return data
