"""Bound programs without a GPU: a recording driver shows what each launch would pass. (tests/gpu runs the same for real.)"""

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cublaslt import FakeCublasLt

from trtllm_kernels.compile.cubin import Cubin, CubinInfo
from trtllm_kernels.dialect.types import Arg, Launch, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch import driver, nccl
from trtllm_kernels.launch.driver import BoundProgram


class RecordingDriver:
    """Stands for `cuda.bindings.driver`."""

    def __init__(self) -> None:
        self.launches: list[tuple] = []
        self.attributes: list[list[tuple]] = []
        self.set: list[tuple[int, str, int]] = []
        self.functions: list[int] = []
        self.encoded: list[tuple] = []
        self._modules = 0
        self.status = driver._SUCCESS
        self._map = ctypes.create_string_buffer(b"M" * 128, 128)
        real = driver.cuda
        for name in dir(real):
            if name.startswith(("CU", "cuuint")):
                setattr(self, name, getattr(real, name))

    def cuModuleLoadData(self, code: bytes) -> tuple:
        self._modules += 1
        return driver._SUCCESS, self._modules

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple:
        return driver._SUCCESS, (module, name)

    def cuFuncSetAttribute(self, function: tuple[int, bytes], attribute: Any, value: int) -> tuple:
        self.set.append((function[0], attribute.name.removeprefix("CU_FUNC_ATTRIBUTE_"), value))
        return (driver._SUCCESS,)

    def cuTensorMapEncodeTiled(self, *args: object) -> tuple:
        self.encoded.append(args)
        return driver._SUCCESS, SimpleNamespace(getPtr=lambda: ctypes.addressof(self._map))

    def cuLaunchKernelEx(self, config, function, parameters, extra) -> tuple:
        """Reads what the driver would: the structure at the configuration's address."""
        *grid, threads, y, z, shared = (ctypes.c_uint32 * 7).from_address(config.getPtr())
        stream, attributes = (ctypes.c_uint64 * 2).from_address(config.getPtr() + 32)
        count = ctypes.c_uint32.from_address(config.getPtr() + 48).value
        assert (y, z, extra) == (1, 1, 0)
        self.functions.append(function[0])
        self.launches.append((function[1], tuple(grid), threads, shared, stream, parameters))
        self.attributes.append([tuple((ctypes.c_uint32 * 3).from_address(attributes + 72 * i)) for i in range(count)])
        return (self.status,)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    recorder = RecordingDriver()
    stream = SimpleNamespace(cuda_stream=77, synchronize=lambda: None)
    monkeypatch.setattr(driver, "cuda", recorder)
    monkeypatch.setattr(driver, "_functions", {})
    monkeypatch.setattr(driver, "_bindable", lambda tensor: tensor.is_contiguous() and tensor.data_ptr() % 4 == 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return recorder


def cubin(shared: int = 1024, **info: object) -> Cubin:
    return Cubin(CubinInfo("entry", "sm_90", 4, shared, 32, 0, **info), b"code%d" % shared)


def parameter(address: int, index: int, kind: type) -> object:
    pointers = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
    return kind.from_address(pointers[index]).value


def test_launch_passes_its_arguments_in_order_and_follows_the_symbols(fake: RecordingDriver) -> None:
    tensors = {"x": torch.zeros(64, 4), "cache": torch.zeros(3, 8, 4)}
    args = (
        Arg("tensor", "x"),
        Arg("tensor", "cache", index=2),
        Arg("i32", "T - D"),
        Arg("i64", "T * 3000000000"),
        Arg("fp32", 0.5),
        Arg("i32", 7),
    )
    launch = Launch("k", ("ceil_div(T, 16)", "D", 1), args)
    program = BoundProgram([Lowered((launch,))], tensors.__getitem__, {"k": cubin(shared=99000)})
    with pytest.raises(KernelError, match="set_symbols"):
        program.run()
    for tokens, decodes in ((33, 2), (5, 1)):
        program.set_symbols(T=tokens, R=3, D=decodes, S=1, C=0)
        program.run()
        name, grid, threads, shared, stream, address = fake.launches[-1]
        assert (name, grid, threads, shared, stream) == (b"entry", (-(-tokens // 16), decodes, 1), 128, 99000, 77)
        assert parameter(address, 0, ctypes.c_uint64) == tensors["x"].data_ptr()
        assert parameter(address, 1, ctypes.c_uint64) == tensors["cache"][2].data_ptr()
        assert parameter(address, 2, ctypes.c_int32) == tokens - decodes
        assert parameter(address, 3, ctypes.c_int64) == tokens * 3000000000
        assert parameter(address, 4, ctypes.c_float) == 0.5
        assert parameter(address, 5, ctypes.c_int32) == 7
        assert [parameter(address, i, ctypes.c_uint64) for i in (6, 7)] == [0, 0]
    program.set_symbols(T=5, R=3, D=0, S=1, C=0)
    program.run()
    assert len(fake.launches) == 2, "an empty grid must be skipped"


def test_steps_whose_sizes_are_equal_launch_the_same(fake: RecordingDriver) -> None:
    """What decides whether two steps share a CUDA graph; asking changes nothing of the step that is set."""
    short = "max(0, min(1, 1025 - L))"
    launches = (Launch("k", ("D", 1, 1), (Arg("i32", "T"),)), Launch("k", (f"D * {short}", 1, 1)), Launch("k", (f"D - D * {short}", 1, 1)))
    program = BoundProgram([Lowered(launches)], {}.__getitem__, {"k": cubin()})
    program.set_symbols(T=3, R=3, D=3, S=3, C=0, L=1024)
    same, other = program.sizes(T=3, R=3, D=3, S=3, C=0, L=512), program.sizes(T=3, R=3, D=3, S=3, C=0, L=2048)
    program.run()
    assert len(fake.launches) == 2
    assert same == program.sizes(T=3, R=9, D=3, S=3, C=0, L=1024) != other


def test_only_in_steps_of_few_tokens_all_of_an_sms_memory_is_to_be_shared(fake: RecordingDriver) -> None:
    """A cubin that overlaps is loaded twice, another once."""
    launches = (Launch("k", ("T", 1, 1)), Launch("k", ("D", 1, 1)), Launch("small"), Launch("deaf"))
    cubins = {"k": cubin(shared=99000, waits=True), "small": cubin(shared=9000, waits=True), "deaf": cubin(shared=8000)}
    program = BoundProgram([Lowered(launches)], {}.__getitem__, cubins)
    room, split = "MAX_DYNAMIC_SHARED_SIZE_BYTES", "PREFERRED_SHARED_MEMORY_CARVEOUT"
    assert fake.set == [(1, room, 99000), (2, room, 99000), (2, split, 100), (4, split, 100)], (
        "each cubin that overlaps is loaded twice, others once"
    )
    steps = ((1, 1, [2, 2, 4, 5]), (128, 0, [2, 4, 5]), (129, 64, [1, 1, 3, 5]), (2000, 0, [1, 3, 5]), (7, 7, [2, 2, 4, 5]))
    for tokens, decodes, expected in steps:
        fake.functions.clear()
        program.set_symbols(T=tokens, R=3, D=decodes, S=1, C=0)
        for _ in range(2):
            program.run()
        assert fake.functions == expected * 2


def test_one_code_that_asks_for_more_shared_memory_is_a_function_of_its_own(fake: RecordingDriver) -> None:
    launches = (Launch("less"), Launch("more"), Launch("less again"))
    asked = {"less": 50000, "more": 99000, "less again": 50000}
    cubins = {name: replace(cubin(), info=replace(cubin().info, shared_bytes=amount)) for name, amount in asked.items()}
    BoundProgram([Lowered(launches)], {}.__getitem__, cubins)
    room = "MAX_DYNAMIC_SHARED_SIZE_BYTES"
    assert fake.set == [(1, room, 50000), (2, room, 99000)]


def test_a_step_that_differs_in_one_size_only_is_launched_anew(fake: RecordingDriver) -> None:
    program = BoundProgram([Lowered((Launch("k", ("4 * min(1, C)", 1, 1), ()),))], {}.__getitem__, {"k": cubin()})
    for continued in (0, 2, 2, 0):
        program.set_symbols(T=5, R=3, D=0, S=1, C=continued)
        program.run()
    assert [grid for _, grid, *_ in fake.launches] == [(4, 1, 1)] * 2


DEPENDENT = [(6, 0, 1)]
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, padding, 1."""


def test_kernels_that_wait_begin_early_but_for_the_first_of_a_run(fake: RecordingDriver, lt: FakeCublasLt) -> None:
    """`decode` is left out of steps without D, `deaf` does not wait, and after a library routine all is as after a kernel."""
    tensors = {"x": torch.randn(8, 4), "w": torch.randn(4, 4), "y": torch.zeros(8, 4)}
    product = Launch(library="matmul", grid=("T", 4, 4), args=tuple(Arg("tensor", name) for name in "xwy"))
    launches = (Launch("decode", ("D", 1, 1)), Launch("deaf"), Launch("some", ("T", 1, 1)), product, Launch("last"))
    cubins = {name: cubin(waits=name != "deaf") for name in ("decode", "deaf", "some", "last")}
    for overlap, expected in ((True, DEPENDENT), (False, [])):
        program = BoundProgram([Lowered(launches)], tensors.__getitem__, cubins, pdl=overlap)
        for decodes, first in ((1, [[], [], expected, expected]), (0, [[], expected, expected]), (2, [[], [], expected, expected])):
            fake.attributes.clear()
            program.set_symbols(T=3, R=2, D=decodes, S=1, C=0)
            for _ in range(2):
                program.run()
            assert fake.attributes == first * 2
    only = BoundProgram([Lowered((Launch("last"),))], tensors.__getitem__, cubins)
    fake.attributes.clear()
    only.set_symbols(T=1, R=1, D=0, S=0, C=0)
    only.run()
    assert fake.attributes == [[]]


def test_what_follows_a_launch_that_settles_begins_when_it_has_ended(fake: RecordingDriver) -> None:
    launches = (Launch("first"), Launch("prepare", serialize_next=True), Launch("some", ("D", 1, 1)), Launch("other"), Launch("last"))
    cubins = {launch.kernel: cubin(waits=True) for launch in launches}
    program = BoundProgram([Lowered(launches)], {}.__getitem__, cubins)
    for decodes, expected in ((1, [[], DEPENDENT, [], DEPENDENT, DEPENDENT]), (0, [[], DEPENDENT, [], DEPENDENT])):
        fake.attributes.clear()
        program.set_symbols(T=1, R=1, D=decodes, S=1, C=0)
        program.run()
        assert fake.attributes == expected


def test_what_follows_a_call_of_nccl_begins_when_it_has_ended(fake: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels do not say when the next may begin; an event may stand between, too."""
    calls: list[tuple[Any, ...]] = []
    entry = SimpleNamespace(ncclAllReduce=lambda *arguments: bool(calls.append(arguments)))
    monkeypatch.setattr(nccl, "library", lambda: SimpleNamespace(entry=entry))
    monkeypatch.setitem(nccl._COMMUNICATORS, 5, SimpleNamespace(rank=0, handle=None))
    tensors = {"x": torch.zeros(8, 4), "group": torch.tensor([0, 5], dtype=torch.int32)}
    total = Launch(library="nccl_sum", grid=("S", 4, 1), args=tuple(Arg("tensor", name) for name in ("x", "x", "group")))
    launches = (Launch("first"), total, Launch("some"), Launch("last"))
    program = BoundProgram([Lowered(launches)], tensors.__getitem__, {name: cubin(waits=True) for name in ("first", "some", "last")})
    for rows, expected in ((3, [[], [], DEPENDENT]), (0, [[], DEPENDENT, DEPENDENT])):  # no rows: no call
        fake.attributes.clear()
        program.set_symbols(T=3, R=3, D=3, S=rows, C=0)
        program.run()
        assert fake.attributes == expected
    ((_, _, count, *_, stream),) = calls
    assert (count.value, stream.value) == (12, 77)


def test_a_launch_beside_another_begins_early_and_its_neighbours_do_not(fake: RecordingDriver) -> None:
    """The pair is in steps with D; without its partner (C) the one beside runs in turn."""
    names = ("before", "prompts", "decode", "after", "last")
    launches = (
        Launch("before"),
        Launch("prompts", ("C", 1, 1)),
        Launch("decode", ("D", 1, 1), concurrent=True),
        Launch("after"),
        Launch("last"),
    )
    cubins = {name: cubin(waits=name != "decode") for name in names}
    program = BoundProgram([Lowered(launches)], {}.__getitem__, cubins)
    for decodes, context, expected in (
        (1, 1, [[], [], DEPENDENT, [], DEPENDENT]),
        (0, 1, [[], DEPENDENT, DEPENDENT, DEPENDENT]),
        (1, 0, [[], [], DEPENDENT, DEPENDENT]),
        (0, 0, [[], DEPENDENT, DEPENDENT]),
    ):
        fake.attributes.clear()
        program.set_symbols(T=3, R=2, D=decodes, S=1, C=context)
        program.run()
        assert fake.attributes == expected
    apart = BoundProgram([Lowered(launches)], {}.__getitem__, cubins, pdl=False)
    fake.attributes.clear()
    apart.set_symbols(T=3, R=2, D=1, S=1, C=1)
    apart.run()
    assert fake.attributes == [[]] * 5


def test_launches_follow_torchs_stream(fake: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    program = BoundProgram([Lowered((Launch("k"), Launch("k", ("D", 1, 1))))], {}.__getitem__, {"k": cubin()})
    for stream, decodes in ((77, 0), (99, 0), (99, 1), (77, 1)):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda stream=stream: SimpleNamespace(cuda_stream=stream))
        fake.launches.clear()
        program.set_symbols(T=1, R=1, D=decodes, S=0, C=0)
        program.run()
        assert [launch[4] for launch in fake.launches] == [stream] * (1 + decodes)


def test_tma_descriptor_is_an_aligned_copy_followed_by_sizes_and_strides(fake: RecordingDriver) -> None:
    description = {"elem_type": 10, "block_size": [64, 32], "swizzle": 2}
    tensors = {"a": torch.zeros(96, 40, dtype=torch.bfloat16)}
    program = BoundProgram(
        [Lowered((Launch("k", (1, 1, 1), (Arg("tma", "a", (64, 32)), Arg("i32", 5))),))],
        tensors.__getitem__,
        {"k": cubin(tensordesc=(description,))},
    )
    program.set_symbols(T=0, R=0, D=0, S=0, C=0)
    program.run()
    kind, rank, address, sizes, strides, box = fake.encoded[0][:6]
    assert (kind, rank, address) == (fake.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, tensors["a"].data_ptr())
    assert [[int(v) for v in values] for values in (sizes, strides, box)] == [[40, 96], [80], [32, 64]]
    array = fake.launches[0][-1]
    pointer = ctypes.cast(array, ctypes.POINTER(ctypes.c_void_p))[0]
    assert pointer % 64 == 0
    assert ctypes.string_at(pointer, 128) == b"M" * 128
    assert [parameter(array, i, ctypes.c_int32) for i in (1, 2)] == [96, 40]
    assert [parameter(array, i, ctypes.c_int64) for i in (3, 4)] == [40, 1]
    assert parameter(array, 5, ctypes.c_int32) == 5


def test_interleaved_boxes_have_a_dimension_for_each_part_of_a_row(fake: RecordingDriver) -> None:
    """Row 16 b + 8 h + 2 q + i of a box is row 16 b + 4 q + 2 h + i of the matrix. A box may begin at any but the last 126 rows, and reads
    nothing behind the matrix."""
    description = {"elem_type": 0, "block_size": [128, 64], "swizzle": 2, "interleaved": True}
    tensors = {"a": torch.arange(200 * 64, dtype=torch.int32).to(torch.uint8).view(200, 64)}
    BoundProgram(
        [Lowered((Launch("k", (1, 1, 1), (Arg("tma", "a", (128, 64)),)),))], tensors.__getitem__, {"k": cubin(tensordesc=(description,))}
    )
    _, rank, address, sizes, strides, box = fake.encoded[0][:6]
    sizes, strides, box = ([int(v) for v in values] for values in (sizes, strides, box))
    assert (rank, address, sizes, box) == (5, tensors["a"].data_ptr(), [64, 74, 4, 2, 8], [64, 2, 4, 2, 8])
    rows = torch.as_strided(torch.arange(200 * 64), box[::-1], [*strides[::-1], 1]).flatten(0, 3)[:, 0] // 64
    assert rows.tolist() == [16 * (r // 16) + 4 * (r // 2 % 4) + 2 * (r // 8 % 2) + r % 2 for r in range(128)]
    last = sum((box[i] - 1) * strides[i - 1] for i in (2, 3, 4)) + (sizes[1] - 1) * strides[0]
    assert last == 199 * 64


def test_refusals_name_the_matter(fake: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"x": torch.zeros(64)}
    one = Lowered((Launch("k", ("T", 1, 1), (Arg("tensor", "x"),)),))
    with pytest.raises(KernelError, match="kernel k, which was not compiled; rebuild the engine"):
        BoundProgram([one], tensors.__getitem__, {})
    with pytest.raises(KernelError, match="unknown library routine 'fft'"):
        BoundProgram([Lowered((Launch(library="fft"),))], tensors.__getitem__, {})
    program = BoundProgram([one], tensors.__getitem__, {"k": cubin()})
    program.set_symbols(T=1, R=1, D=0, S=0, C=0)
    fake.status = driver.cuda.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(KernelError, match=r"refused to launch k on grid \(1, 1, 1\): CUDA_ERROR_INVALID_VALUE"):
        program.run()
    monkeypatch.setattr(driver, "_bindable", lambda tensor: False)
    with pytest.raises(KernelError, match="'x' must be a contiguous tensor in CUDA or pinned memory at an address divisible by 16"):
        BoundProgram([one], tensors.__getitem__, {"k": cubin()})
