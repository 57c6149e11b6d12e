"""A cuBLASLt of Python for host memory: it keeps what descriptors are told and multiplies as they say, from the addresses it is given.

Written against cublasLt.h and not against the code under test: matrices are column-major [rows, columns] with a leading dimension, the
result is alpha * op(A) op(B) + beta * C, the epilogue adds a bias to every column, and an attribute of the wrong size is refused.
"""

import ctypes

import torch

TYPES = {0: torch.float32, 2: torch.float16, 14: torch.bfloat16, 28: torch.float8_e4m3fn}
SIZES = {
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8, 17: 8, 18: 8, 25: 1, 26: 4},
    "MatrixLayout": {0: 4, 1: 4, 2: 8, 3: 8, 4: 8},
    "MatmulPreference": {1: 8, 5: 4, 6: 4, 7: 4, 8: 4},
}
INVALID_VALUE, NOT_SUPPORTED = 7, 15


class Entry:
    """A C function: callable, with a settable restype."""

    def __init__(self, function) -> None:
        self._function, self.restype = function, ctypes.c_int

    def __call__(self, *args):
        return self._function(*args)


def number(value) -> int:
    value = getattr(value, "value", value)
    return 0 if value is None else int(value)


class FakeCublasLt:
    def __init__(self, version: int = 131000, proposals: int = 8) -> None:
        self.version, self.proposals = version, proposals
        self.objects: dict[int, tuple[str, dict[int, int]]] = {}
        self.asked: list[tuple[int, int]] = []
        """(rows, how many) of every question to the heuristic"""
        self.ran: list[dict[str, object]] = []
        self.status = 0
        self.runs_elsewhere = True
        """Whether an algorithm may run for rows it was not proposed for."""
        for kind in SIZES:
            setattr(self, f"cublasLt{kind}Create", Entry(lambda out, *args, _kind=kind: self._create(_kind, out._obj, *args)))
            setattr(self, f"cublasLt{kind}Destroy", Entry(lambda pointer: self.objects.pop(number(pointer)) and 0))
            setattr(self, f"cublasLt{kind}SetAttribute", Entry(lambda *args, _kind=kind: self._set(_kind, *args)))
        self.cublasLtGetVersion = Entry(lambda: self.version)
        self.cublasLtCreate = Entry(self._handle)
        self.cublasLtMatmulAlgoGetHeuristic = Entry(self._heuristic)
        self.cublasLtMatmulAlgoCheck = Entry(self._check)
        self.cublasLtMatmul = Entry(self._matmul)

    def _handle(self, out) -> int:
        out._obj.value = 4242
        return 0

    def _create(self, kind: str, out, *args) -> int:
        out.value = 1000 + 8 * len(self.objects) + 8000 * len(self.ran)
        while out.value in self.objects:
            out.value += 8
        self.objects[out.value] = (kind, {})
        if kind == "MatrixLayout":
            self.objects[out.value][1].update(zip((0, 2, 3, 4), map(number, args), strict=True))
        elif kind == "MatmulDesc":
            assert [number(a) for a in args] == [68, 0], "accumulates and scales in fp32"
        return 0

    def _set(self, kind: str, pointer, attribute: int, value, size) -> int:
        found, attributes = self.objects[number(pointer)]
        assert found == kind
        if SIZES[kind].get(attribute) != number(size):
            return INVALID_VALUE
        attributes[attribute] = number(value._obj)
        return 0

    def attributes(self, pointer) -> dict[int, int]:
        return self.objects[number(pointer)][1]

    def _heuristic(self, handle, operation, a, b, c, d, preference, count, results, found) -> int:
        assert number(handle) == 4242
        rows = self.attributes(d)[3]
        self.asked.append((rows, count))
        assert self.attributes(c)[3] == self.attributes(b)[3] == rows
        assert {1, 5, 6, 7, 8} <= self.attributes(preference).keys()
        found._obj.value = min(count, self.proposals)
        for rank in range(found._obj.value):
            results[rank].algorithm[0], results[rank].algorithm[1], results[rank].state = rows, rank, 0
        return 0

    def _check(self, handle, operation, a, b, c, d, algorithm, result) -> int:
        result._obj.state = 0
        return 0 if self.runs_elsewhere or algorithm._obj[0] == self.attributes(d)[3] else NOT_SUPPORTED

    def _matrix(self, pointer, layout) -> torch.Tensor:
        """[rows, columns], a view of the caller's memory."""
        about = self.attributes(layout)
        dtype = TYPES[about[0]]
        rows, columns, leading = about[2], about[3], about[4]
        return _memory(pointer, (columns - 1) * leading + rows, dtype).as_strided((rows, columns), (1, leading))

    def _matmul(self, handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, *rest) -> int:
        if self.status:
            return self.status
        about = self.attributes(operation)
        left, right, added, result = (self._matrix(*pair) for pair in ((a, a_layout), (b, b_layout), (c, c_layout), (d, d_layout)))
        left = left.T if about.get(3) else left
        right = right.T if about.get(4) else right
        product = left.float() @ right.float()
        for scale in (17, 18):
            if scale in about:
                assert about[25] == 1
                product = product * _memory(about[scale], 1, torch.float32)
        product = alpha._obj.value * product
        if beta._obj.value:
            product = product + beta._obj.value * added.float()
        if about.get(7, 1) == 4:
            product = product + _memory(about[8], len(product), TYPES[about[26]]).float()[:, None]
        result.copy_(product.to(result.dtype))
        workspace, workspace_bytes, stream = rest
        chosen = tuple(algorithm._obj[:2])
        memory = (number(workspace), number(workspace_bytes))
        self.ran.append({"chosen": chosen, "rows": result.shape[1], "stream": number(stream), "workspace": memory})
        return 0


def _memory(pointer, count: int, dtype: torch.dtype) -> torch.Tensor:
    size = count * dtype.itemsize
    raw = (ctypes.c_uint8 * size).from_address(number(pointer))
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype)
