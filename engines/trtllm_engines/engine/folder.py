"""An engine on disk: written whole or not at all, checked when read.

    engine.json            the plan; of a pipeline its first stage's, with those of the others in engine.<n>.json
    constants.safetensors  tables the compiler computed
    rank<n>.safetensors    weights of each rank, n being stage * tp + rank of its group (absent when they are drawn from a seed)
    kernels/<arch>/        <key>.cubin and <key>.json
    tokenizer.json, ...    copied from the model's folder when it has them
    checksums.json         size and sha256 of every file above

Writing goes to a temporary folder beside the target, renamed at the end: a crash never leaves half an engine. (Replacing one takes two
renames; a crash just between them leaves the old engine whole in `.<name>.old.*` beside the target.)

Checking at load: every file's size, and the sha256 of every file up to 64 MiB. Larger files (weights) are checked by size and by a sha256
over 64 blocks of 256 KiB spread evenly from first to last byte: hashing every byte would be most of an engine's start (1.5 s for 538 MB
on the busy two-core machine where it was tried). That finds truncation and replaced files, not a flipped bit between samples;
`verify="full"` (`inspect --verify`) hashes everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.plan import LOGITS, Plan
from trtllm_engines.engine.fingerprint import DetectedDevice, check_target, check_versions
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import kv_cache_dtype
from trtllm_kernels.compile.cubin import Cubin

PLAN = "engine.json"
CONSTANTS = "constants.safetensors"
CHECKSUMS = "checksums.json"
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_SAMPLE_ABOVE = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 256 << 10


def stage_plan(stage: int) -> str:
    """Name of the file of a pipeline stage's plan."""
    return PLAN if stage == 0 else f"engine.{stage}.json"


def rank_weights(rank: int) -> str:
    """Name of the file of a rank's weights."""
    return f"rank{rank}.safetensors"


@dataclass(frozen=True)
class Engine:
    """A loaded engine, or one pipeline stage of it. `arch` is the architecture whose launches and kernels to use, `cpu` on a machine
    without a GPU."""

    path: Path
    plan: Plan
    arch: str

    def tensors(self, device: torch.device | str, rank: int = 0) -> dict[str, Tensor]:
        """Weights and constants of `rank` of the stage's group by name, on `device`. Dummy weights are drawn there."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # safetensors takes that for the first GPU, whichever is current
            device = torch.device("cuda", torch.cuda.current_device())
        loaded: dict[str, Tensor] = load_file(self.path / CONSTANTS, device=str(device))
        if self.plan.weights_source["kind"] == "dummy":
            source = DummyWeights(int(self.plan.weights_source["seed"]))
            loaded |= {name: assemble(self.plan, name, source, device, rank) for name in self.plan.weights}
        else:
            number = self.plan.stage.index * self.plan.parallel.tp + rank
            loaded |= load_file(self.path / rank_weights(number), device=str(device))
        return loaded

    def cubin(self, key: str) -> Cubin:
        """The machine code of kernel `key` for this engine's architecture."""
        return Cubin.load(self.path / "kernels" / self.arch, key)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model came without one (presets)."""
        return Tokenizer(self.path) if (self.path / "tokenizer.json").is_file() else None


def load_engine(path: Path | str, target: DetectedDevice | None = None, verify: Literal["fast", "full"] = "fast", stage: int = 0) -> Engine:
    """Reads and checks an engine, for the CPU or, given a `target`, for that GPU; of a pipeline, one `stage`.

    Raises `EngineError`: not an engine, a damaged file (named), another format or kernel ABI, another architecture, or an older driver.
    """
    path = Path(path)
    raw = _read_json(path, PLAN)
    fingerprint = raw.get("fingerprint") or {}
    check_versions(fingerprint.get("format_version"), fingerprint.get("kernel_abi"), str(path), _rebuild_from(raw, path))
    check_files(path, verify)
    try:
        plan = Plan.from_json((path / stage_plan(stage)).read_text())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"engine file {path / stage_plan(stage)} is damaged ({error!r}); rebuild with: {_rebuild_from(raw, path)}"
        ) from None
    arch = "cpu" if target is None else check_target(plan.fingerprint, target, str(path), rebuild_command(plan, path, target.arch))
    return Engine(path, plan, arch)


def rebuild_command(plan: Plan, path: Path, *arches: str) -> str:
    """The command that makes this engine again, for `arches` or the ones it has."""
    source = plan.weights_source
    weights = ["dummy", "--seed", str(source["seed"])] if source["kind"] == "dummy" else [str(source["path"])]
    profile = plan.profile
    marked = [part for name in plan.outputs if name != LOGITS for part in ("--mark-output", name)]
    flags = {
        "--arch": ",".join(arches or plan.fingerprint.arches),
        "--max-batch-size": profile.max_batch_size,
        "--max-num-tokens": profile.max_num_tokens,
        "--max-seq-len": profile.max_seq_len,
        "--page-size": profile.page_size,
    }
    if plan.parallel.tp > 1:
        flags["--tp"] = plan.parallel.tp
    if plan.parallel.pp > 1:
        flags["--pp"] = plan.parallel.pp
    command = [
        "trtllm-bench",
        "build",
        "--model",
        plan.fingerprint.provenance["model"],
        "--precision",
        plan.precision,
        "--weights",
        *weights,
    ]
    if plan.kv_dtype != kv_cache_dtype(plan.precision):
        flags["--kv-dtype"] = plan.kv_dtype
    command += [part for name, value in flags.items() for part in (name, str(value))]
    return shlex.join([*command, *marked, "--out", str(path)])


def _rebuild_from(raw: Mapping[str, Any], path: Path) -> str:
    """As `rebuild_command`, from a plan of another version: as much of it as can be read."""
    provenance = (raw.get("fingerprint") or {}).get("provenance") or {}
    command = ["trtllm-bench", "build", "--model", str(provenance.get("model", "MODEL"))]
    precision = (raw.get("quant") or {}).get("name") or raw.get("precision", "PRECISION")
    return shlex.join([*command, "--precision", str(precision), "--out", str(path)])


@contextmanager
def writing(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well. Replaces an engine there, refuses to replace anything else.

    Raises `EngineError` for a folder that cannot be written and for a full disk.
    """
    if out.exists() and not (out / PLAN).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise EngineError(f"{out} exists and is not an engine folder; choose another output folder or remove it")
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if needed_bytes > free:
            raise EngineError(
                f"no space for the engine at {out}: it needs {needed_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
                f"free some or choose another output folder"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        temporary.chmod(0o755)
        yield temporary
        _write_checksums(temporary)
        _swap(temporary, out)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise EngineError(
                f"no space left on disk while writing the engine to {out}; free some or choose another output folder"
            ) from None
        if error.errno in (EACCES, EPERM, EROFS):
            raise EngineError(f"cannot write the engine to {out} ({error.strerror}); choose a folder you may write to") from None
        raise EngineError(f"cannot write the engine to {out} ({error})") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    if not out.exists():
        os.rename(new, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.rename(out, old / "engine")
    os.rename(new, out)
    shutil.rmtree(old, ignore_errors=True)


def check_files(path: Path, verify: Literal["fast", "full"] = "fast") -> None:
    """Raises `EngineError` naming the first file that is missing, truncated or altered."""
    expected: Mapping[str, Mapping[str, Any]] = _read_json(path, CHECKSUMS)
    for name, entry in expected.items():
        file = path / name
        try:
            size = file.stat().st_size
        except OSError:
            raise EngineError(f"engine file {file} is missing; rebuild the engine or copy it again") from None
        if size != entry["bytes"]:
            raise EngineError(
                f"engine file {file} is {'truncated' if size < entry['bytes'] else 'altered'}: {size} bytes instead of {entry['bytes']}; "
                f"rebuild the engine or copy it again"
            )
        sampled = size > _SAMPLE_ABOVE and verify == "fast"
        if (sampled_digest(file) if sampled else _digest(file)) != entry["sampled_sha256" if sampled else "sha256"]:
            raise EngineError(f"engine file {file} was altered (its checksum differs); rebuild the engine or copy it again")


def _write_checksums(folder: Path) -> None:
    entries = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS):
        size = file.stat().st_size
        entry: dict[str, Any] = {"bytes": size, "sha256": _digest(file)}
        if size > _SAMPLE_ABOVE:
            entry["sampled_sha256"] = sampled_digest(file)
        entries[file.relative_to(folder).as_posix()] = entry
    (folder / CHECKSUMS).write_text(json.dumps(entries, indent=1))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sampled_digest(file: Path) -> str:
    """sha256 over evenly spread blocks, the first and the last included."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for index in range(_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _read_json(path: Path, name: str) -> dict[str, Any]:
    if not path.is_dir():
        raise EngineError(f"no engine at {path}: there is no such folder; make one with trtllm-bench build")
    try:
        data = json.loads((path / name).read_text())
    except FileNotFoundError:
        raise EngineError(f"{path} is not an engine: it has no {name}; make one with trtllm-bench build") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"engine file {path / name} is damaged ({error}); rebuild the engine or copy it again") from None
    if not isinstance(data, dict):
        raise EngineError(f"engine file {path / name} is damaged (it holds no JSON object); rebuild the engine or copy it again")
    return data
