"""What an engine holds, as data and as a report that fits 80 columns.

`describe` returns plain JSON types (the command's `--json` prints just that); `render` draws it. Layers repeat, so ops and weights are
grouped by name with the layer's number replaced by `*`: a model of 80 layers reads like one of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trtllm_engines.checkpoints.write import weight_bytes
from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.engine.folder import Engine, load_engine, rebuild_command
from trtllm_engines.engine.verified import Progress
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import recipe_kind
from trtllm_engines.quantization.scheme import QuantScheme
from trtllm_kernels.compile.cubin import Cubin

Description = dict[str, Any]


def describe(path: Path | str, *, verify: bool = False, progress: Progress | None = None) -> Description:
    """Everything `render` shows. `verify` hashes every byte. Raises `EngineError` for a folder that is not a whole engine."""
    engine = load_engine(path, verify="full" if verify else "once", progress=progress)
    plan = engine.plan
    config = plan.config
    stages = [plan, *(load_engine(path, stage=stage).plan for stage in range(1, plan.parallel.pp))]
    recipes = [recipe for one in stages for recipe in one.weight_recipes.values() if not recipe_kind(recipe.kind).is_scale]
    parameters = sum(math.prod(shape) for shape in {name: shape for recipe in recipes for name, shape in recipe.inputs}.values())
    kv_bytes_per_token = plan.quant.kv.nbytes(2 * config.num_layers * config.num_kv_heads, config.head_dim)
    profile = plan.profile
    return {
        "path": str(engine.path),
        "verified": verify,
        "model": {**plan.model, "parameters": parameters},
        "precision": plan.precision,
        "kv_dtype": plan.kv_dtype,
        "context_attention": plan.quant.context_attention,
        "quantization": {"source": plan.quant.source, "schemes": _schemes(plan)},
        "profile": asdict(profile),
        "parallel": {name: size for name, size in asdict(plan.parallel).items() if name != "nnodes" or size > 1}
        | {"layers": [one.stage.num_layers for one in stages]},
        "weights": {"source": dict(plan.weights_source), "tensors": len(plan.weights), "bytes": weight_bytes(plan.weights)},
        "memory": {
            "activation_arena_bytes": plan.arena_bytes,
            "sum_of_values_bytes": sum(buffer.nbytes for buffer in plan.buffers.values()),
            "constants_bytes": weight_bytes(plan.constants),
            "kv_bytes_per_token": kv_bytes_per_token,
            "kv_bytes_at_profile": kv_bytes_per_token * profile.max_batch_size * profile.max_pages_per_seq * profile.page_size,
        },
        "ops": _ops(plan),
        "outputs": list(plan.outputs),
        "kernels": _kernels(engine),
        "fingerprint": {**asdict(plan.fingerprint), "arches": list(plan.fingerprint.arches)},
        "rebuild": rebuild_command(plan, engine.path),
    }


def _schemes(plan: Plan) -> list[Description]:
    """One row per scheme: what it is, and the products that have it, with their layers where these are not all."""
    layers: dict[QuantScheme, dict[str, list[int]]] = {}
    for weight, scheme in plan.schemes.items():
        products = layers.setdefault(scheme, {})
        numbers = products.setdefault(_starred(weight.removesuffix(".weight")), [])
        numbers += [int(number) for number in re.findall(r"\.(\d+)\.", weight)[:1]]
    return [
        {
            "scheme": scheme.name,
            "weights": str(scheme.weights) if scheme.weights else scheme.name,
            "inputs": str(scheme.inputs) if scheme.weights else scheme.name,
            "count": sum(max(1, len(numbers)) for numbers in products.values()),
            "products": [name + _some_layers(numbers, plan.config.num_layers) for name, numbers in products.items()],
        }
        for scheme, products in layers.items()
    ]


def _some_layers(numbers: Sequence[int], count: int) -> str:
    """ " (layers 0-3, 7)" where it is not every layer of `count`."""
    if len(numbers) in (0, count):
        return ""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f" (layers {', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)})"


def _ops(plan: Plan) -> list[Description]:
    """One row per group of ops alike but for their layer."""
    rows: dict[tuple[str, ...], Description] = {}
    for op in plan.ops:
        name, outputs = _starred(op.name), [_starred(output) for output in op.outputs]
        launches = {
            arch: [launch.library or launch.kernel.rsplit("-", 1)[0] for launch in low.launches] for arch, low in op.tactics.items()
        }
        shapes = ["x".join(map(str, plan.values[output].shape)) for output in op.outputs]
        key = (name, op.op, *shapes, str(launches))
        row = rows.setdefault(
            key, {"name": name, "op": op.op, "count": 0, "outputs": outputs, "shapes": shapes, "dtype": "", "launches": launches}
        )
        row["dtype"] = plan.values[op.outputs[0]].dtype
        row["count"] += 1
    return list(rows.values())


def _starred(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Names from the layer's star on: what is before it is the same in all of them."""
    return [name[name.find("*") :] if "*" in name else name for name in names]


def _kernels(engine: Engine) -> list[Description]:
    uses: dict[tuple[str, str], int] = {}
    for op in engine.plan.ops:
        for arch, lowered in op.tactics.items():
            for kernel in lowered.kernels:
                uses[arch, kernel.key] = uses.get((arch, kernel.key), 0) + 1
    rows = []
    for (arch, key), count in uses.items():
        try:
            info = Cubin.load(engine.path / "kernels" / arch, key).info
        except ValueError as error:
            raise EngineError(f"engine {engine.path} lacks a kernel its plan names ({error}); rebuild the engine") from None
        rows.append({**asdict(info), "kernel": key, "ops": count, "tensordesc": len(info.tensordesc)})
    return rows


def render(description: Description) -> RenderableType:
    """For a terminal 80 columns wide."""
    return Group(*_sections(description))


def _sections(d: Description) -> Iterator[RenderableType]:
    yield _facts(d)
    for table in (_scheme_table(d), _op_table(d), *((_kernel_table(d),) if d["kernels"] else ())):
        yield Text()
        yield table


def _facts(d: Description) -> Table:
    model, profile, memory, fingerprint, weights = d["model"], d["profile"], d["memory"], d["fingerprint"], d["weights"]
    heads = f"{model['num_heads']} heads, {model['num_kv_heads']} KV heads of {model['head_dim']}"
    source = weights["source"]
    origin = f"drawn from seed {source['seed']}" if source["kind"] == "dummy" else f"{source['kind']} {source['path']}"
    gpus = [arch for arch in fingerprint["arches"] if arch != CPU]
    rows = {
        "engine": d["path"] + (" (every byte verified)" if d["verified"] else ""),
        "model": f"{model['name']}: {model['architecture']}, {model['parameters'] / 1e6:,.1f} M parameters",
        "": f"{model['num_layers']} layers, hidden {model['hidden_size']}, {heads}, vocabulary {model['vocab_size']}",
        "precision": f"{d['precision']}, KV cache {d['kv_dtype']}, context attention {d['context_attention']}",
        "profile": f"{profile['max_batch_size']} sequences, {profile['max_num_tokens']} tokens per step, "
        f"sequences to {profile['max_seq_len']}, pages of {profile['page_size']}",
        "weights": f"{weights['tensors']} tensors, {_size(weights['bytes'])}, {origin}",
        "memory": f"activations {_size(memory['activation_arena_bytes'])} (without sharing {_size(memory['sum_of_values_bytes'])}), "
        f"KV {_size(memory['kv_bytes_per_token'])} per token, {_size(memory['kv_bytes_at_profile'])} for a full profile",
        **({} if d["parallel"]["tp"] * d["parallel"]["pp"] == 1 else {"layout": _layout(d["parallel"])}),
        "runs on": f"CPU{''.join(f', {arch}' for arch in gpus)}"
        + (f"; NVIDIA driver {fingerprint['min_driver']} or later" if gpus else ""),
        "versions": f"format {fingerprint['format_version']}, kernel ABI {fingerprint['kernel_abi']}; made by "
        + ", ".join(f"{k} {v}" for k, v in fingerprint["provenance"].items() if not k.startswith("kernels/") and k != "model"),
        "outputs": ", ".join(d["outputs"]),
        "rebuild": d["rebuild"],
    }
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in rows.items():
        facts.add_row(name, Text(value))
    return facts


def _scheme_table(d: Description) -> Table:
    table = _table("schemes of the products (* is the layer)", n="right", weights="left", inputs="left", products="left")
    for row in d["quantization"]["schemes"]:
        table.add_row(str(row["count"]), row["weights"], row["inputs"], Text(", ".join(_without_prefix(row["products"]))))
    return table


def _op_table(d: Description) -> Table:
    table = _table("ops, in order (* is the layer)", n="right", op="left", name="left", result="left")
    for row in d["ops"]:
        table.add_row(str(row["count"]), row["op"], Text(row["name"]), f"{row['shapes'][0]} {row['dtype']}")
    return table


def _table(title: str, **columns: Literal["left", "right"]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column, justify in columns.items():
        table.add_column(column, justify=justify, overflow="fold")
    return table


def _kernel_table(d: Description) -> Table:
    table = Table(title="kernels", title_justify="left", box=None, pad_edge=False)
    for column in ("arch", "kernel", "ops", "warps", "registers", "shared B", "spill B"):
        table.add_column(column, justify="left" if column in ("arch", "kernel") else "right", no_wrap=True)
    for row in d["kernels"]:
        spill = Text(str(row["spill_bytes"]), style="red" if row["spill_bytes"] else "")
        numbers = (row["ops"], row["num_warps"], row["registers"], row["shared_bytes"])
        table.add_row(row["arch"], row["kernel"].rsplit("-", 1)[0], *map(str, numbers), spill)
    return table


def _layout(parallel: Mapping[str, Any]) -> str:
    group = f"{parallel['tp']} tensor-parallel ranks"
    hosts = f" on {parallel['nnodes']} hosts" if "nnodes" in parallel else ""
    if parallel["pp"] == 1:
        return f"{group}{hosts}; weights, memory and ops are one rank's"
    layers = ", ".join(map(str, parallel["layers"]))
    shown = "weights, memory and ops are those of a rank of the first"
    return f"{parallel['pp']} pipeline stages of {layers} layers{f', each of {group}' if parallel['tp'] > 1 else ''}{hosts}; {shown}"


def _size(count: int) -> str:
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
