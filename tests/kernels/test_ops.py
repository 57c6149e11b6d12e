"""Specifications of ops: torch reads the same schema, they load without torch, and the document is what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect import table
from trtllm_kernels.dialect.op_spec import OpSpec, register
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.work import elementwise
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import LOWERINGS, kernel_phase, lower
from trtllm_kernels.references import OPS


@pytest.mark.parametrize("name", OP_SPECS)
def test_arguments_are_those_torch_reads_from_the_schema(name: str) -> None:
    spec, schema = OP_SPECS[name], OPS[name].overload._schema
    assert [argument.name for argument in spec.arguments] == [argument.name for argument in schema.arguments]
    for ours, torchs in zip(spec.arguments, schema.arguments, strict=True):
        assert ours.is_tensor == ("Tensor" in str(torchs.type))
        assert ours.optional == str(torchs.type).startswith("Optional")
        assert ours.mutated == (torchs.alias_info is not None and torchs.alias_info.is_write)
    assert spec.tensors + spec.attrs == OPS[name].tensors + OPS[name].attrs
    assert spec.results.count("Tensor") == len(schema.returns)


def test_what_an_op_says_of_itself() -> None:
    write = OP_SPECS["rope_kv_write"]
    assert write.tensors[3:5] == ("kv_cache", "kv_slots")
    assert write.optional_tensors == ("q_norm", "k_norm", "k_scale", "v_scale", "kv_scales")
    assert write.attrs == ("layer", "num_heads", "num_kv_heads", "head_dim", "interleaved", "eps")
    assert (write.mutates, write.scales, write.in_place) == (("kv_cache", "kv_scales"), ("k_scale", "v_scale"), "qkv")
    assert {name for name, spec in OP_SPECS.items() if Trait.LAYER in spec.traits} == {"linear", "rms_norm", "layer_norm", "embedding"}
    assert {name for name, spec in OP_SPECS.items() if spec.kind == "gemm"} == {
        "linear",
        "linear_sample",
        "sharded_linear_sample",
        "gate_up_silu",
        "linear_gelu",
    }


def test_the_ops_that_an_op_names_take_its_arguments() -> None:
    """So that a pass may put one in the other's place by the arguments' names."""
    named = {(name, kind): getattr(spec, kind) for name, spec in OP_SPECS.items() for kind in ("by_row", "of_sum", "alone")}
    given = {name: {argument.name for argument in spec.arguments} for name, spec in OP_SPECS.items()}
    for (name, kind), other in named.items():
        if other:
            more, fewer = {"by_row": ({"dtype"}, {"out_scale"}), "of_sum": ({"residual", "addend"}, set()), "alone": (set(), {"group"})}[
                kind
            ]
            takes = {{"a": "x", "b": "residual"}.get(one, one) for one in given[other]} if kind == "alone" else given[other]
            assert given[name] - fewer <= takes, (name, other)
            assert more <= takes - given[name], (name, other)


def test_specifications_and_lowerings_load_without_torch() -> None:
    code = "import sys, trtllm_kernels.lowering as lowering; assert len(lowering.LOWERINGS) == 35; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_document_is_current() -> None:
    document = Path(__file__).parents[2] / "docs" / "ops.md"
    assert document.read_text() == table.markdown(), "run: python -m trtllm_kernels.dialect.table > docs/ops.md"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_kernel_of_attention_says_which_sequences_it_serves(arch: str) -> None:
    functions = {
        spec.function
        for precision in ("bf16", "fp32", "fp8")
        for op in ops_of(MODELS["llama-3.1-8b"], precision)
        if op.op == "paged_attention"
        for spec in lower(op.op, op.inputs, op.outputs, op.attrs, arch).kernels
    }
    assert functions <= LOWERINGS["paged_attention"].kernel_phases.keys()
    assert {function for function in functions if kernel_phase("paged_attention", function) == "decode"} == {
        "decode_attention",
        *(["decode_attention_many", "decode_attention_even", "decode_attention_merge"] if arch == "sm_90" else []),
        "reduce_splits",
    }
    assert kernel_phase("rms_norm", "rms_norm") is None
    assert kernel_phase("sample", "decode_attention") is None, "the runtime's sampling is no op of the dialect"


@pytest.mark.parametrize(
    ("schema", "more", "message"),
    [
        ("gelu(Tensor x) -> Tensor", {}, "op gelu is registered twice; choose another name"),
        ("gelu2(Tensor x)", {}, "schema 'gelu2(Tensor x)' is malformed; write 'name(Tensor x, int n) -> Tensor'"),
        ("gelu2(Tensor) -> Tensor", {}, "schema of op gelu2: argument 'Tensor' is malformed; write 'Tensor? bias=None'"),
        ("gelu2(Tensor x) -> Tensor", {"in_place": "y"}, "specification of op gelu2 names ['y']; its tensors are x"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(schema: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(KernelError) as error:
        register(OpSpec(schema, "", elementwise(0), **more))  # type: ignore[arg-type]
    assert str(error.value) == message
    assert "gelu2" not in OP_SPECS
