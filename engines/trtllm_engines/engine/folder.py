"""An engine on disk: written whole or not at all, checked when read.

    engine.json            the plan; of a pipeline its first stage's, with those of the others in engine.<n>.json
    constants.safetensors  tables the compiler computed
    rank<n>.safetensors    weights of each rank, n being stage * tp + rank of its group (absent when they are drawn from a seed)
    kernels/<arch>/        <key>.cubin and <key>.json
    tokenizer.json, ...    copied from the model's folder when it has them
    checksums.json         size and sha256 of every file above

Writing goes to a temporary folder beside the target, renamed at the end (within an empty target, whose `engine.json` comes last): a crash
never leaves half an engine. (Replacing one takes two renames; a crash just between them leaves the old engine whole in `.<name>.old.*`
beside the target.)

Checking at load: every file's size, and the sha256 of every byte of those that were not hashed since they last changed (`verified`);
`--verify` hashes all of them. Then the plan: types, names, sizes (`check_plan`), and the tensors against it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.fingerprint import TACTICS, DetectedDevice, check_target, check_versions
from trtllm_engines.compiler.plan import LOGITS, Plan
from trtllm_engines.documents import parse_object, read_text, shown_path
from trtllm_engines.engine.check_plan import check_listed, check_plan, check_tensors, unknown_key
from trtllm_engines.engine.checksums import CHECKSUMS, Verify, check_files, write_checksums
from trtllm_engines.engine.verified import Progress
from trtllm_engines.errors import EngineError, NoSpaceError, WriteError
from trtllm_engines.models.fields import Fields
from trtllm_engines.partial_folder import check_space, is_empty, move_up, partial_folder
from trtllm_engines.quantization import kv_cache_dtype
from trtllm_engines.quantization.registry import MIXED
from trtllm_engines.quantization.scheme import WIDE
from trtllm_kernels import tactics
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.specs import DTYPES, as_stored, storage_shape
from trtllm_kernels.dialect.types import TensorSpec

__all__ = ["CHECKSUMS", "COPIED", "PLAN", "Engine", "check_files", "load_engine", "rank_weights", "rebuild_command", "writing"]

PLAN = "engine.json"
CONSTANTS = "constants.safetensors"
MOST_PLAN_BYTES = 1 << 30
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
        loaded = self._read(CONSTANTS, self.plan.constants, device)
        if self.plan.weights_source["kind"] == "dummy":
            source = DummyWeights(int(self.plan.weights_source["seed"]))
            return loaded | self._drawn(source, device, rank)
        number = self.plan.stage.index * self.plan.parallel.tp + rank
        return loaded | self._read(rank_weights(number), self.plan.weights, device)

    def _drawn(self, source: DummyWeights, device: torch.device, rank: int) -> dict[str, Tensor]:
        """All are allocated before the first is drawn: what drawing takes meanwhile would lie between them and leave gaps in the device's
        memory, too small for the KV cache."""
        weights = {
            name: torch.empty(storage_shape([int(dim) for dim in spec.shape], spec.dtype), dtype=DTYPES[spec.dtype], device=device)
            for name, spec in self.plan.weights.items()
        }
        for name, weight in weights.items():
            weight.copy_(assemble(self.plan, name, source, device, rank))
        return weights

    def _read(self, name: str, specs: Mapping[str, TensorSpec], device: torch.device) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.path / name, device=str(device))
        except (SafetensorError, OSError) as error:
            raise EngineError(f"engine file {self.path / name} cannot be read ({error}); rebuild the engine or copy it again") from None
        tensors |= {name: as_stored(tensors[name], spec.dtype) for name, spec in specs.items() if name in tensors}
        check_tensors(tensors, specs, f"engine file {self.path / name}")
        return tensors

    def cubin(self, key: str) -> Cubin:
        """The machine code of kernel `key` for this engine's architecture."""
        return Cubin.load(self.path / "kernels" / self.arch, key)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model came without one (presets)."""
        return Tokenizer(self.path) if (self.path / "tokenizer.json").is_file() else None

    def check_layout(self, tp: int | None, pp: int | None) -> None:
        """Raises `EngineError` where it was built for another number of ranks or stages than is asked for; None asks for neither."""
        for name, asked, built in (("tp", tp, self.plan.parallel.tp), ("pp", pp, self.plan.parallel.pp)):
            if asked not in (None, built):
                raise EngineError(f"{self.path} was built for --{name} {built}, not {asked}; leave --{name} out, or build another engine")


def load_engine(
    path: Path | str,
    target: DetectedDevice | None = None,
    verify: Verify = "once",
    progress: Progress | None = None,
    stage: int = 0,
) -> Engine:
    """Reads and checks an engine, for the CPU or, given a `target`, for that GPU; of a pipeline, one `stage`.

    `progress` is told of files being hashed once that takes seconds.
    Raises `EngineError`: not an engine, a damaged file (named), another format or kernel ABI, another architecture, or an older driver.
    """
    path = Path(path)
    text, raw = _read_plan(path)
    fingerprint = Fields(raw, str(path / PLAN)).section("fingerprint")
    check_versions(fingerprint.get("format_version"), fingerprint.get("kernel_abi"), str(path), _rebuild_from(raw, path))
    listed = check_files(path, verify, progress)
    if stage:
        text, raw = _read_plan(path, stage_plan(stage))
    source = f"engine file {path / stage_plan(stage)} is damaged"
    plan = Plan.from_json(text, source)
    if (unknown := unknown_key(raw, plan.to_dict())) is not None:
        raise EngineError(f"{source}: {unknown[:200]} is not a known key; rebuild with: {_rebuild_from(raw, path)}")
    check_plan(plan, source)
    layout = plan.parallel
    stored = [] if plan.weights_source["kind"] == "dummy" else map(rank_weights, range(layout.ranks))
    copied = [name for name in COPIED if os.path.lexists(path / name)]
    check_listed(plan, listed, [*map(stage_plan, range(layout.pp)), CONSTANTS, *stored, *copied], str(path / CHECKSUMS))
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
    if plan.parallel.nnodes > 1:
        flags["--nnodes"] = plan.parallel.nnodes
    taken = {plan.fingerprint.provenance.get(f"{TACTICS}{arch}", "") for arch in plan.fingerprint.arches}
    if tuned := taken - {"", *tactics.GPU_OF_ARCH.values()}:
        flags["--gpu"] = min(tuned)
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
    if plan.precision == MIXED and Path(plan.quant.source).suffix == ".toml":
        flags["--precision-map"] = plan.quant.source
    if plan.kv_dtype != kv_cache_dtype(plan.precision, arches=plan.fingerprint.arches):
        flags["--kv-dtype"] = plan.kv_dtype
    if plan.quant.context_attention != WIDE:
        flags["--context-attention"] = plan.quant.context_attention
    command += [part for name, value in flags.items() for part in (name, str(value))]
    return shlex.join([*command, *marked, "--out", str(path)])


def _rebuild_from(raw: Mapping[str, Any], path: Path) -> str:
    """As `rebuild_command`, from a plan of another version: as much of it as can be read."""
    fields = Fields(raw, PLAN)
    try:
        model = fields.section("fingerprint").section("provenance").text("model") or "MODEL"
        precision = fields.section("quant").text("name") or fields.text("precision") or "PRECISION"
    except EngineError:
        model, precision = "MODEL", "PRECISION"
    command = ["trtllm-bench", "build", "--model", model]
    return shlex.join([*command, "--precision", str(precision), "--out", str(path)])


@contextmanager
def writing(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends well; a link is followed. Replaces an engine there, refuses to replace
    anything else.

    Raises `EngineError` for a folder that cannot be written and for a full disk.
    """
    place = Path(os.path.realpath(out))
    replaced, within = (place / PLAN).is_file(), place.is_dir() and not (place / PLAN).is_file()
    if place.exists() and not replaced and not (within and is_empty(place)):
        raise EngineError(f"{out} exists and is not an engine folder; choose another output folder or remove it")
    if replaced and place.is_mount():
        raise EngineError(f"{out} is mounted, so that the engine in it cannot be replaced; choose a folder within it")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        check_space("the engine", place, needed_bytes)
        with partial_folder(place, within) as folder:
            yield folder
            write_checksums(folder)
            if within:
                move_up(folder, PLAN)
            else:
                _swap(folder, place)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise NoSpaceError(
                f"no space left on disk while writing the engine to {out}; free some or choose another output folder"
            ) from None
        raise WriteError(f"the engine to {out}", error, "choose a folder you may write to") from None


def _swap(new: Path, out: Path) -> None:
    if not out.exists():
        os.rename(new, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    os.rename(out, old / "engine")
    os.rename(new, out)
    shutil.rmtree(old, ignore_errors=True)


def _read_plan(path: Path, name: str = PLAN) -> tuple[str, dict[str, Any]]:
    """The text of a plan, and its JSON. Raises `EngineError`."""
    if not path.is_dir():
        raise EngineError(f"no engine at {shown_path(path)}: there is no such folder; make one with trtllm-bench build")
    try:
        text = read_text(path / name, MOST_PLAN_BYTES)
    except FileNotFoundError:
        raise EngineError(f"{path} is not an engine: it has no {name}; make one with trtllm-bench build") from None
    return text, parse_object(text, f"engine file {path / name} is damaged and")
