"""Matrix products through cuBLASLt, by a stand-in that follows the descriptors (fake_cublaslt.py); tests/gpu has the library itself."""

import gc
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_cublaslt import FakeCublasLt

from trtllm_kernels.dialect.types import Arg, Launch, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch import cublaslt, shared_library
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.references.quantize import FP8, finish

N, K, MOST = 6, 16, 9


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found)
    return found


def draw(dtype: torch.dtype, names: str) -> dict[str, torch.Tensor]:
    """Operands named by a letter each: x, w, scales p q, bias b, residual r, result y."""
    torch.manual_seed(0)
    wide = torch.bfloat16 if dtype == FP8 else dtype
    found = {"x": torch.randn(MOST, K), "w": torch.randn(N, K), "b": torch.randn(N), "r": torch.randn(MOST, N)}
    found["y"] = torch.full((MOST, N), torch.nan)
    scales = {"p": torch.tensor([0.01]), "q": torch.tensor([0.005])}
    typed = {k: finish(v, FP8, scales[s]) if dtype == FP8 else v.to(dtype) for k, s in (("x", "p"), ("w", "q")) for v in (found[k],)}
    typed |= {k: found[k].to(wide) for k in "bry"} | scales
    return {name: aligned(typed[name]) for name in names}


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """As an engine has them: at a multiple of 256 bytes."""
    raw = torch.empty(tensor.nbytes + 256, dtype=torch.uint8)
    start = -raw.data_ptr() % 256
    return raw[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def launch(names: str, rows: str = "T") -> Launch:
    routine = "scaled_matmul" if "p" in names else "matmul"
    return Launch(library=routine, grid=(rows, N, K), args=tuple(Arg("tensor", name) for name in names))


def bind(tensors: dict[str, torch.Tensor], *launches: Launch) -> BoundProgram:
    return BoundProgram([Lowered(launches)], tensors.__getitem__, {})


def run(program: BoundProgram, tokens: int, rows: int = 0) -> None:
    program.set_symbols(T=tokens, R=1, D=0, S=rows, C=0)
    program.run()


def expected(t: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rounded once."""
    total = t["x"].float() @ t["w"].float().T * (t["p"] * t["q"] if "p" in t else 1.0)
    for name in "rb":
        total = total + t[name].float() if name in t else total
    return total.to(t["y"].dtype)


@pytest.mark.parametrize("extra", ["", "b", "r", "br"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, FP8])
def test_product_with_every_summand_touches_the_steps_rows_only(lt: FakeCublasLt, dtype: torch.dtype, extra: str) -> None:
    names = "xw" + ("pq" if dtype == FP8 else "") + extra + "y"
    tensors = draw(dtype, names)
    program = bind(tensors, launch(names))
    want = expected(tensors)
    for rows in (2, MOST, 1):
        tensors["y"].fill_(torch.nan)
        run(program, rows)
        torch.testing.assert_close(tensors["y"][:rows], want[:rows])
        assert tensors["y"][rows:].isnan().all()
    run(program, 0)
    assert len(lt.ran) == 3


def test_the_residuals_memory_may_take_the_result(lt: FakeCublasLt) -> None:
    tensors = draw(torch.bfloat16, "xwry")
    want = expected(tensors)
    tensors["y"] = tensors["r"]
    run(bind(tensors, launch("xwry")), MOST)
    torch.testing.assert_close(tensors["r"], want)


def test_launches_of_one_shape_share_one_choice_and_it_is_made_once_a_number_of_rows(lt: FakeCublasLt, stream: SimpleNamespace) -> None:
    tensors = draw(torch.bfloat16, "xwbry")
    program = bind(tensors, launch("xwy"), launch("xwry"), launch("xwby"), launch("xwy", rows="S"))
    for tokens, rows in ((5, 2), (3, 1), (5, 2)):
        run(program, tokens, rows)
    assert sorted(lt.asked) == [(1, 1), (2, 1), (3, 1), (3, 1), (5, 1), (5, 1)], "with a bias is another problem"
    assert [one["chosen"] for one in lt.ran[:4]] == [(5, 0)] * 3 + [(2, 0)]
    other = bind(tensors, launch("xwry"))
    stream.cuda_stream = 78
    run(other, 5)
    assert len(lt.asked) == 6, "what another program found holds for this one"
    assert lt.ran[0]["workspace"] == lt.ran[-1]["workspace"]
    assert (lt.ran[0]["stream"], lt.ran[-1]["stream"]) == (77, 78)
    assert lt.ran[0]["workspace"][1] == 32 << 20


def chosen(lt: FakeCublasLt, program: BoundProgram, tokens: int) -> tuple[int, ...]:
    run(program, tokens)
    return lt.ran[-1]["chosen"]


def ranked(version: int) -> Launch:
    """As a tactic has it that takes proposal 3 for 8 rows from 5 to 8, and the first elsewhere."""
    here = "max(0, min(1, T - 4, 9 - T))"
    numbers = (Arg("i32", f"3 * {here}"), Arg("i32", f"8 * {here}"), Arg("i32", version))
    return replace(launch("xwry"), args=(*launch("xwry").args, *numbers))


@pytest.mark.parametrize("version", [0, 131000])
def test_a_recorded_choice_is_the_proposal_for_the_size_it_was_measured_at(lt: FakeCublasLt, version: int) -> None:
    program = bind(draw(torch.bfloat16, "xwry"), ranked(version))
    assert [chosen(lt, program, tokens) for tokens in (4, 5, 8, 9, 5)] == [(4, 0), (8, 3), (8, 3), (9, 0), (8, 3)]
    assert lt.asked == [(4, 1), (8, 4), (8, 4), (9, 1)]
    assert [one["rows"] for one in lt.ran] == [4, 5, 8, 9, 5], "the layouts are the step's, whoever was asked for what"


def test_a_choice_that_cannot_run_here_is_the_first_proposal(lt: FakeCublasLt) -> None:
    program = bind(draw(torch.bfloat16, "xwry"), ranked(0))
    lt.runs_elsewhere = False
    assert [chosen(lt, program, tokens) for tokens in (8, 5)] == [(8, 3), (5, 0)]
    lt.proposals = 3
    assert chosen(lt, program, 6) == (6, 0)


def test_choices_of_another_version_are_left_alone_with_a_note(lt: FakeCublasLt, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = draw(torch.bfloat16, "xwry")
    programs = [bind(tensors, ranked(120800)) for _ in range(2)]
    assert [chosen(lt, program, 5) for program in programs] == [(5, 0)] * 2
    said = "note: cuBLASLt algorithms were chosen with version 120800 and this is 131000, so the library's own choices are used\n"
    assert capsys.readouterr().err == said


def test_what_the_library_is_told(lt: FakeCublasLt) -> None:
    """Attributes by number: transposed A (3), epilogue (7) bias (4), its address (8) and type (26), scales (17, 18), fast sums (25)."""
    tensors = draw(FP8, "xwpqbry")
    program = bind(tensors, launch("xwpqbry"))
    (operation,) = (about for kind, about in lt.objects.values() if kind == "MatmulDesc")
    assert operation == {
        3: 1,
        7: 4,
        8: tensors["b"].data_ptr(),
        26: 14,
        17: tensors["q"].data_ptr(),
        18: tensors["p"].data_ptr(),
        25: 1,
    }
    layouts = [about for kind, about in lt.objects.values() if kind == "MatrixLayout"]
    assert layouts == [{0: 28, 2: K, 3: N, 4: K}, {0: 28, 2: K, 3: 1, 4: K}, {0: 14, 2: N, 3: 1, 4: N}]
    (preference,) = (about for kind, about in lt.objects.values() if kind == "MatmulPreference")
    assert preference == {1: 32 << 20, 5: 256, 6: 256, 7: 256, 8: 256}
    tensors["r"] = aligned(torch.zeros(MOST * N + 8).bfloat16())[8:].view(MOST, N)
    program = bind(tensors, launch("xwpqbry"))
    (preference,) = (about for kind, about in lt.objects.values() if kind == "MatmulPreference")
    assert preference == {1: 32 << 20, 5: 256, 6: 256, 7: 16, 8: 256}, "the residual"
    del program


def test_descriptors_go_with_their_program(lt: FakeCublasLt) -> None:
    program = bind(draw(torch.bfloat16, "xwy"), launch("xwy"))
    assert len(lt.objects) == 5
    del program
    gc.collect()
    assert not lt.objects


def test_a_scale_a_row_stays_with_torch(lt: FakeCublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda x, w, xs, ws, **rest: seen.append((x.shape, w.shape, xs.shape, ws.shape)))
    tensors = draw(FP8, "xwpqry") | {"p": torch.ones(MOST, 1), "q": torch.ones(N, 1)}
    run(bind(tensors, launch("xwpqy")), 4)
    assert seen == [((4, K), (K, N), (4, 1), (1, N))]
    assert not lt.ran
    with pytest.raises(KernelError, match="takes no residual"):
        bind(tensors, launch("xwpqry"))


def test_refusals_name_the_status(lt: FakeCublasLt) -> None:
    tensors = draw(torch.bfloat16, "xwy")
    program = bind(tensors, launch("xwy"))
    program.set_symbols(T=3, R=1, D=0, S=0, C=0)
    lt.status = 13
    with pytest.raises(KernelError, match=r"multiply by a weight of \(6, 16\): CUBLAS_STATUS_EXECUTION_FAILED"):
        program.run()
    lt.proposals = 0
    with pytest.raises(KernelError, match=r"131000 has no algorithm for 4 x 16 by 6 x 16 in torch\.bfloat16"):
        program.set_symbols(T=4, R=1, D=0, S=0, C=0)
    lt.cublasLtCreate = lambda out: 1
    with pytest.raises(KernelError, match="refused cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED"):
        cublaslt.Library(lt).handle(0)
    with pytest.raises(KernelError, match="contiguous matrices"):
        bind(tensors | {"w": tensors["w"].repeat(1, 2)[:, ::2]}, launch("xwy"))


def test_without_the_library_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "_candidates", lambda: ["/nowhere/libcublasLt.so.13"])
    cublaslt.library.cache_clear()
    with pytest.raises(KernelError, match=r"GEMMs need cuBLASLt .* install a CUDA build of torch"):
        cublaslt.library()


def test_the_library_already_in_the_process_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    maps = tmp_path / "maps"
    line = "7f00-7f01 r-xp 00000000 fe:00 12 /opt/nvidia/cu13/lib/libcublasLt.so.13\n"
    maps.write_text(line + line + "7f02-7f03 r-xp 00000000 fe:00 13 /opt/lib/libcublas.so.13\n")
    monkeypatch.setattr(shared_library, "_MAPS", maps)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert cublaslt._candidates() == ["/opt/nvidia/cu13/lib/libcublasLt.so.13", "libcublasLt.so.12"]


def test_a_library_may_lie_in_a_folder_of_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """With spaces, and with bytes that are no UTF-8; a folder that is called as a library is none."""
    maps, start = tmp_path / "maps", b"7f00-7f01 r-xp 00000000 fe:00 12                       "
    folders = (b"/home/a b/venv/lib/libx.so.1", b"/home/m\xfcller/lib/libx.so.1", b"/home/libx.so/y.so", b"[stack]")
    maps.write_bytes(b"".join(start + path + b"\n" for path in folders) + b"7f04-7f05 rw-p 00000000 00:00 0\n")
    monkeypatch.setattr(shared_library, "_MAPS", maps)
    assert [os.fsencode(path) for path in shared_library.mapped("libx.so")] == [*folders[:2]]
