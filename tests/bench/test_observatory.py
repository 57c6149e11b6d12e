"""Our kernels at published shapes: reading the figures, the sample, the synthetic ops, the way of timing, the record and the plot."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from trtllm_bench.__main__ import main
from trtllm_bench.micro import observatory
from trtllm_bench.micro.bench import Bench
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import compile_cases, ops_until
from trtllm_bench.micro.show import print_beside
from trtllm_bench.micro.timing import Call, How, StoppingRule
from trtllm_bench.roofline.hardware import Hardware
from trtllm_dashboards.plots import ops as plot
from trtllm_results.compare import published_ops
from trtllm_results.compare.published_ops import OpBeside, OpRun, OpShape
from trtllm_results.errors import ResultsError
from trtllm_results.record.environment import Environment

RULE = StoppingRule(batch=2, min_batches=1, seconds=0)
PRODUCT = OpShape("gemm", (4096, 256), "fp8", 8)
SMALL = (
    OpShape("gemm", (4096, 256), "bf16", 4),
    PRODUCT,
    OpShape("prompt attention", (8, 2, 128, 40), "fp8/fp8", 2),
    OpShape("decode attention", (8, 2, 128, 70), "bf16/fp8", 3),
)


class FakeTimer:
    """A run takes 720 us. `ran`: how it was asked for."""

    def __init__(self) -> None:
        self.ran: list[How] = []

    def sample(self, call: Call, count: int, how: How) -> list[float]:
        call()
        self.ran.append(how)
        return [720.0] * count

    def slowed(self) -> bool:
        return False


def beside(family: str, ours: float, alone: float, **theirs: float) -> OpBeside:
    shape = OpShape(family, (4096, 4096) if family == "gemm" else (32, 8, 128, 1024), "fp8", 64)  # type: ignore[arg-type]
    return OpBeside(shape, ours, alone, theirs, roof_us=alone / 2)


def test_the_published_latencies_are_read_as_printed() -> None:
    latencies = published_ops.load_ops()
    assert len(latencies) == 14_880
    assert {one.engine for one in latencies} == {"trtllm 1.3.0rc20", "vllm 0.24.0", "sglang 0.5.14", "nccl 2.29.2"}
    decode = published_ops.by_shape("NVIDIA H200")[OpShape("decode attention", (32, 8, 128, 256), "bf16/fp8", 1024)]
    assert decode == pytest.approx({"trtllm 1.3.0rc20": 159.1, "vllm 0.24.0": 357.3, "sglang 0.5.14": 353.5}, abs=0.06)
    product = published_ops.by_shape("NVIDIA H100 80GB HBM3")[OpShape("gemm", (6144, 4096), "fp8", 1)]
    assert {engine: round(value, 1) for engine, value in product.items()} == {
        "trtllm 1.3.0rc20": 21.8,
        "vllm 0.24.0": 14.4,
        "sglang 0.5.14": 14.3,
    }
    with pytest.raises(ResultsError, match="no op latencies are published for NVIDIA A100-SXM4-80GB; they are for H100, H200"):
        published_ops.by_shape("NVIDIA A100-SXM4-80GB")
    with pytest.raises(ResultsError, match="published for NVIDIA H100 PCIe"):
        published_ops.by_shape("NVIDIA H100 PCIe")


def test_what_is_not_ours_is_counted_and_said() -> None:
    shapes = published_ops.by_shape("NVIDIA H200")
    able = published_ops.ours(shapes, ["gemm", "attention"])
    assert Counter(one.family for one in able) == {"decode attention": 644, "prompt attention": 687, "gemm": 240}
    told = published_ops.left_out(shapes)
    assert len(able) + sum(int(one.rpartition("(")[2].split()[0].replace(",", "")) for one in told) == len(shapes)
    assert [one.split(":")[0] for one in told] == ["all-reduce", "gemm fp8_block", "moe"]
    assert {one.family for one in published_ops.ours(shapes, ["gemm"])} == {"gemm"}
    with pytest.raises(ResultsError, match="--ops is 'moe'; choose from gemm, attention"):
        published_ops.ours(shapes, ["moe"])


@pytest.mark.parametrize("limit", [1, 7, 60, 240, 1570])
def test_a_sample_is_spread_over_families_types_and_sizes(limit: int) -> None:
    able = published_ops.ours(published_ops.by_shape("NVIDIA H200"), ["gemm", "attention"])
    chosen = published_ops.sample(able, limit)
    assert len(set(chosen)) == len(chosen) == limit
    assert chosen == published_ops.sample(reversed(able), limit)
    if 3 <= limit <= 240:
        assert max(Counter(one.family for one in chosen).values()) - min(Counter(one.family for one in chosen).values()) <= 1
    if limit == 240:
        products = [one for one in chosen if one.sizes == (6144, 4096) and one.dtype == "fp8"]
        assert len(products) == 5
        assert products[0].rows < 8
        assert products[-1].rows > 1024
    assert published_ops.sample(able, 0) == published_ops.sample(able, 5000)


def test_ours_has_the_published_sizes() -> None:
    for group in observatory.groups_of(SMALL):
        bench = Bench(group.config, group.precision, "cpu", group.cases, last=group.last, **group.compile_flags)
        shape = group.shapes[0]
        (bound,) = observatory.works_of(group, bench, shape)["alone"]
        if shape.family == "gemm":
            x, weight = bound.arguments()["x"], bound.arguments()["weight"]
            assert (len(x), *weight.shape) == (shape.rows, *shape.sizes)
            assert bound.cost.flop == shape.size
            assert (x.dtype == torch.float8_e4m3fn) == (shape.dtype == "fp8")
        else:
            cache, lens = bound.arguments()["kv_cache"], bound.arguments()["kv_lens"]
            assert (bound.op.attrs["num_heads"], cache.shape[3], cache.shape[5]) == shape.sizes[:3]
            assert lens[: shape.rows].tolist() == [shape.sizes[3] + (shape.family == "decode attention")] * shape.rows
            assert cache.dtype == torch.float8_e4m3fn


def test_an_op_is_timed_as_theirs_with_the_work_that_theirs_holds() -> None:
    timer = FakeTimer()
    rows, wrong = observatory.run(
        observatory.groups_of(SMALL),
        {shape: {"a": 20.0, "b": 10.0} for shape in SMALL},
        "cpu",
        timer,
        RULE,
        Hardware("t", {"fp8": 1e12}, 1e11),
    )
    assert not wrong
    assert set(timer.ran) == {"chained"}
    by_shape = {row.shape: row for row in rows}
    assert by_shape[PRODUCT].ours_us == 720 / 36, "six replays of a graph with six weights"
    assert by_shape[SMALL[3]].ours_us == 720 / 6, "six replays of one call"
    assert [row.here_us for row in rows] == [720 / 36, None, None, None], "torch's product in bf16, with six weights too"
    assert by_shape[PRODUCT].best == ("b", 10.0)
    assert by_shape[PRODUCT].ratio == pytest.approx(0.5)
    roof = max(2 * 8 * 4096 * 256 / 1e12, (4096 * 256 + 8 + 8 * 256 + 8 * 4096 * 2) / 1e11) * 1e6
    assert by_shape[PRODUCT].share == pytest.approx(roof / 20, rel=1e-3)


def test_each_engine_is_beside_ours_of_the_work_that_its_call_holds() -> None:
    prompt = OpShape("prompt attention", (32, 8, 128, 1024), "bf16/bf16", 4)
    theirs = {"trtllm 1.3.0rc20": 110.0, "vllm 0.24.0": 75.0, "sglang 0.5.14": 90.0, "other 1": 95.0}
    row = OpBeside(prompt, 100, 60, theirs, between_us={"cache write": 80})
    assert [row.ours_beside(engine) for engine in theirs] == [100, 80, 80, 100], "with the most work where it is not known"
    assert row.best == ("vllm 0.24.0", 75)
    assert (row.same_work_us, row.ratio, row.alone_ratio) == (80, 75 / 80, 75 / 60)
    faster = replace(row, theirs_us={"trtllm 1.3.0rc20": 104.0, "vllm 0.24.0": 96.0})
    assert (faster.best[0], faster.ratio) == ("trtllm 1.3.0rc20", 1.04), "not the engine of the least time"
    product = OpShape("gemm", (4096, 4096), "fp8", 64)
    assert OpBeside(product, 20, 10, {"vllm 0.24.0": 19.0}, between_us={"given scale": 12}).ratio == 0.95
    assert OpBeside(replace(product, dtype="bf16"), 20, 10, {"vllm 0.24.0": 19.0}).ratio == 1.9
    assert {engine.split()[0] for engine in published_ops.by_shape("NVIDIA H200")[replace(product, rows=1)]} == set(published_ops.CALLS)


def test_the_works_of_a_prompt_write_the_cache_without_rotation_and_with() -> None:
    shape = OpShape("prompt attention", (2, 1, 128, 5), "fp8/fp8", 2)
    (group,) = observatory.groups_of([shape])
    bench = Bench(group.config, group.precision, "cpu", group.cases, last=group.last, **group.compile_flags)
    works = observatory.works_of(group, bench, shape)
    assert {work: [part.op.op for part in parts] for work, parts in works.items()} == {
        "alone": ["paged_attention"],
        "cache write": ["rope_kv_write_quantize", "paged_attention"],
        "rotation": ["rope_kv_write_quantize", "paged_attention"],
    }, "products of fp8"
    still, rotating = works["cache write"][0], works["rotation"][0]
    drawn = torch.randn(still.memory[still.op.inputs[0]].shape, generator=torch.Generator().manual_seed(0))
    codes = {}
    for part in (still, rotating):
        part.memory[part.op.inputs[0]] = drawn.to(torch.bfloat16)
        part.run()
        codes[part.op.name] = part.memory[part.op.outputs[2]][:10].float()
    keys, scale = drawn.to(torch.bfloat16)[:, 256:384].float(), still.arguments()["k_scale"]
    assert torch.equal(codes[still.op.name], (keys / scale).to(torch.float8_e4m3fn).float()), "as they were"
    assert not torch.equal(codes[still.op.name], codes[rotating.op.name])


def test_a_product_with_a_scale_a_row_is_behind_the_quantization_that_finds_them() -> None:
    shape = replace(PRODUCT, rows=3)
    group = observatory.by_row(observatory.groups_of([shape])[0])
    bench = Bench(group.config, group.precision, "cpu", group.cases, last=group.last, **group.compile_flags)
    (works,) = observatory.works_of(group, bench, shape).items()
    quantize, product = works[1]
    assert (works[0], quantize.op.op, product.op.op) == ("row scales", "quantize_rows", "linear")
    quantize.run()
    wide, scales = quantize.arguments()["x"].float(), product.arguments()["x_scale"].float()
    torch.testing.assert_close(scales[:, 0], wide.abs().amax(1) / 448)
    assert product.arguments()["weight_scale"].numel() == shape.sizes[0]


def test_an_fp8_product_behind_its_quantization_reads_what_that_makes_and_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = observatory.groups_of([PRODUCT])
    bench = Bench(group.config, "fp8", "cpu", group.cases, last="linear")
    parts = observatory.works_of(group, bench, PRODUCT)["given scale"]
    bound = parts[-1]
    assert [part.op.op for part in parts] == ["quantize", "linear"]
    wide = parts[0].arguments()
    expected = (wide["x"].float() / wide["scale"]).clamp(-448, 448).to(torch.float8_e4m3fn)
    read: list[tuple[str, int]] = []
    made: list[torch.Tensor] = []
    real = BoundOp.run

    def run(self: BoundOp) -> None:
        real(self)
        read.append((self.op.op, self.arguments()["weight"].data_ptr() if self.op.op == "linear" else 0))
        made.extend([self.memory[bound.operand("x")]] * (self.op.op == "quantize"))

    monkeypatch.setattr(BoundOp, "run", run)
    chain = bench.loop(parts, 6)
    chain.run()
    assert chain.calls == 36
    assert [op for op, _ in read] == ["quantize", "linear"] * 36
    assert len({pointer for op, pointer in read if op == "linear"}) == 6
    assert torch.equal(made[-1].float(), expected.float())


@pytest.mark.parametrize("arch", ["sm_90"])
def test_every_published_shape_of_ours_lowers(arch: str) -> None:
    able = published_ops.ours(published_ops.by_shape("NVIDIA H200"), ["gemm", "attention"])
    groups = observatory.groups_of(published_ops.sample(able, 200))
    assert len({(group.family, group.shapes[0].sizes[:3], group.shapes[0].dtype) for group in groups}) == len(groups)
    for group in groups:
        for one in (group, observatory.by_row(group)) if observatory.quantized(group.shapes[0]) else (group,):
            plan = compile_cases(one.config, one.precision, arch, one.cases, **one.compile_flags).plan
            last = ops_until(plan, one.last)[-1]
            if observatory.quantized(one.shapes[0]):
                assert observatory.lowered_quantization(one, plan, last, arch).kernels
            assert last.op == one.last
            assert last.tactics[arch].launches
            for write in observatory.still_writes(plan, arch):
                assert write.kernels


def test_summaries_count_rows_ahead_and_name_those_behind() -> None:
    rows = (
        beside("gemm", 10, 9, a=20.0, b=12.0),
        beside("gemm", 10, 7, a=8.0, b=30.0),
        beside("gemm", 10, 10, a=5.0),
        beside("decode attention", 10, 9, a=10.0),
    )
    gemm, decode = published_ops.summaries(rows)
    assert (gemm.shapes, gemm.ahead, gemm.ahead_alone) == (3, 1, 2)
    assert gemm.behind == (rows[2], rows[1])
    assert gemm.geometric_ratio == pytest.approx((1.2 * 0.8 * 0.5) ** (1 / 3))
    assert gemm.sentence == (
        "gemm: ahead of the fastest of the published engines at 1 of 3 shapes, 2 by the op alone; theirs / ours 0.78 (geometric mean)"
    )
    assert not decode.behind


def test_the_record_comes_back_and_the_plot_has_a_panel_a_family(tmp_path: Path) -> None:
    run = OpRun("NVIDIA H200", (beside("gemm", 10, 9, a=20.0), beside("decode attention", 10, 9, a=9.0)), "kernels", notes=("n",))
    run.save(tmp_path / "ops.json")
    assert OpRun.load(tmp_path / "ops.json") == run
    written = plot.write(run, tmp_path / "ops.svg").read_text()
    assert "GEMM: ahead at 1 of 1" in written
    assert "decode attention: ahead at 0 of 1" in written
    earlier = json.loads((tmp_path / "ops.json").read_text())
    for row in earlier["rows"]:
        del row["between_us"]
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    assert OpRun.load(tmp_path / "earlier.json") == run, "records from before each work was measured"
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ResultsError, match="does not hold a run of kernels --against published"):
        OpRun.load(tmp_path / "bad.json")
    narrow = io.StringIO()
    print_beside(run, Console(file=narrow, width=80))
    (line,) = [line.split() for line in narrow.getvalue().splitlines() if line.startswith("fp8") and "64 of 1,024, 32/8 x 128" in line]
    assert line[-4:] == ["9.0", "a", "0.90", "50"], "theirs, whose, ratio and share of the ceiling at 80 columns"
    stream = io.StringIO()
    print_beside(replace(run, wrong=("decode attention: differs",)), Console(file=stream, width=120))
    said = stream.getvalue()
    assert "gemm: ahead of the fastest of the published engines at 1 of 1 shapes; theirs / ours 2.00 (geometric mean)" in said
    assert "behind: fp8 64 of 1,024, 32/8 heads of 128: ours 10.0 us (alone 9.0), a 9.0, ratio 0.90" in said
    assert "decode attention: differs" in said
    assert "note: n" in said


def test_the_command_measures_prints_and_keeps_what_it_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a CPU in the place of an H200, small shapes and a fake timer."""
    latencies = tuple(published_ops.PeerLatency("NVIDIA H200", "vllm 0.24.0", shape, 15.0) for shape in SMALL)
    monkeypatch.setattr(published_ops, "load_ops", lambda: latencies)
    monkeypatch.setattr("trtllm_bench.machine.gpus", lambda: ["gpu"])
    monkeypatch.setattr("trtllm_bench.machine.arch_of", lambda gpu: "cpu")
    monkeypatch.setattr("trtllm_bench.micro.timing.CuptiTimer", FakeTimer)
    monkeypatch.setattr(observatory, "compile_groups", lambda *given: None)
    monkeypatch.setattr(Environment, "capture", lambda use_gpu: Environment(gpu="NVIDIA H200"))
    monkeypatch.setattr("trtllm_bench.commands.kernels.SAVED_EVERY", 1)
    record, drawing = tmp_path / "ops.json", tmp_path / "ops.png"
    assert main(["kernels", "--against", "published", "--ops", "gemm", "--out", str(record), "--plot", str(drawing)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 shapes; compiling the kernels of 2 plans" in said
    assert "gemm: ahead of the fastest of the published engines at 0 of 2 shapes" in said
    run = OpRun.load(record)
    assert (run.device, [row.shape for row in run.rows], [row.ours_us for row in run.rows]) == (
        "NVIDIA H200",
        list(SMALL[:2]),
        [20.0, 20.0],
    )
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_what_would_change_nothing_or_be_lost_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flags of the other way to choose shapes, and a record that could not be written after an hour of measuring."""
    beside = ["kernels", "--against", "published"]
    for arguments, sentence in (
        ([*beside, "attention"], "NAME is for the kernels of a model"),
        ([*beside, "--model", "llama-3.1-8b"], "--model is for the kernels of a model"),
        ([*beside, "--baseline", "old.json"], "--baseline is for the kernels of a model"),
        ([*beside, "--no-peers"], "--peers is for the kernels of a model"),
        (["kernels", "--ops", "gemm"], "--ops chooses among published shapes"),
        (["kernels", "attention", "--limit", "0"], "--limit chooses among published shapes"),
    ):
        assert main(arguments) == 3
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr("trtllm_bench.machine.gpus", lambda: ["gpu"])
    monkeypatch.setattr(Environment, "capture", lambda use_gpu: pytest.fail("it went on"))
    (tmp_path / "file").write_text("")
    for flag, name in (("--out", "ops.json"), ("--plot", "ops.png")):
        for command in (beside, ["kernels"]):
            assert main([*command, flag, str(tmp_path / "file" / name)]) == 3
            assert f"cannot write {tmp_path / 'file' / name}" in capsys.readouterr().err


def test_the_command_without_a_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_bench.machine.gpus", list)
    assert main(["kernels", "--against", "published"]) == 3
    assert "no NVIDIA GPU is usable here" in capsys.readouterr().err
    assert main(["kernels", "--against", "folklore"]) == 3
    assert "only 'published' is known" in capsys.readouterr().err
