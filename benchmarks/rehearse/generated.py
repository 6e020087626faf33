"""What a graph launches, read from the code that Inductor wrote for it: kernels, and the bytes that they move.

The code is a function `call` of plain statements, in order: buffers are made (`empty_strided_cuda`), the inputs' sizes are
asserted, kernels run. A Triton kernel's bytes are those of its arguments: each buffer read or written once, which is what it
has to move where rows stay in registers; an argument that is both counts twice (`in_out_ptr`). The types of arguments stand in
the kernel's signature. A table that rows are looked up in counts whole. Sizes that are symbols (the number of pieces) count
as 0: they are of index vectors.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["triton", "product", "attention", "aten"]
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ITEM_BYTES = {
    "i1": 1,
    "i8": 1,
    "u8": 1,
    "fp8": 1,
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "i16": 2,
    "u16": 2,
    "bf16": 2,
    "fp16": 2,
    "bfloat16": 2,
    "float16": 2,
    "int16": 2,
    "i32": 4,
    "u32": 4,
    "fp32": 4,
    "float32": 4,
    "int32": 4,
    "i64": 8,
    "u64": 8,
    "fp64": 8,
    "float64": 8,
    "int64": 8,
}


@dataclass(frozen=True)
class Buffer:
    """Elements, and bytes of each; of an input of the graph the type is unknown (None)."""

    numel: int
    item_bytes: int | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Launch:
    """One kernel that runs, or one operator that runs kernels of its own.

    Attributes:
        name: of a Triton kernel as Inductor has it; else the operator's.
        bytes: that it reads and writes; 0 for products and attention, whose kernels are not Inductor's.
        sizes: of a Triton kernel, the ranges that it is launched over (xnumel, r0_numel).
    """

    kind: Kind
    name: str
    bytes: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def stem(self) -> str:
        """The name without the number that tells equal kernels of a graph apart."""
        return re.sub(r"_\d+$", "", self.name)


@dataclass
class Code:
    """A graph's launches in order, and the buffers that it makes."""

    launches: list[Launch] = field(default_factory=list)
    allocated: list[Buffer] = field(default_factory=list)

    def largest(self, dtype: str) -> int:
        """Elements of the largest buffer of a type; 0 where there is none."""
        return max((buffer.numel for buffer in self.allocated if buffer.dtype == dtype), default=0)


def read_code(source: str) -> Code:
    """Raises ValueError for code that has no function `call`: another version of Inductor writes it otherwise."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "call"]
    if not calls:
        raise ValueError("the generated code has no function `call`: this version of torch writes it in another form")
    return _Reader(read_signatures(source)).read(calls[-1])


def read_signatures(source: str) -> dict[str, dict[str, str]]:
    """Kernel -> argument -> type (`*bf16` for a pointer) of what a launch gives: all but the sizes of blocks."""
    found: dict[str, dict[str, str]] = {}
    for text in re.findall(r"async_compile\.triton\('\w+', '''(.*?)'''", source, re.DOTALL):
        for signature, kernel in re.findall(r"'signature': (\{.*?\}).*?\ndef (\w+)\(", text, re.DOTALL):
            types = ast.literal_eval(signature)
            found[kernel] = {argument: kind for argument, kind in types.items() if not argument.isupper()}
    return found


class _Reader:
    def __init__(self, signatures: dict[str, dict[str, str]]) -> None:
        self.signatures = signatures
        self.buffers: dict[str, Buffer] = {}
        self.code = Code()

    def read(self, function: ast.FunctionDef) -> Code:
        statements = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.Expr)]
        for statement in sorted(statements, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self._assign(statement.targets[0].id, statement.value)
            elif isinstance(statement.value, ast.Call):
                self._call(statement.value)
        return self.code

    def _assign(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Call) and _dotted(value.func).startswith("empty_strided"):
            dtype = _dotted(value.args[2]).removeprefix("torch.")
            self.buffers[name] = Buffer(_numel(value.args[0]), ITEM_BYTES.get(dtype), dtype)
            self.code.allocated.append(self.buffers[name])
            return
        if isinstance(value, ast.Call):
            self._call(value)
        buffer = self._buffer(value)
        if buffer is not None:
            self.buffers[name] = buffer

    def _buffer(self, value: ast.expr) -> Buffer | None:
        """What an expression names: a buffer, a view of one, or something else (None)."""
        if isinstance(value, ast.Name):
            return self.buffers.get(value.id)
        if isinstance(value, ast.Call) and _dotted(value.func) == "reinterpret_tensor":
            of = self._buffer(value.args[0]) or Buffer(0)
            return Buffer(_numel(value.args[1]), of.item_bytes, of.dtype)
        return None

    def _call(self, call: ast.Call) -> None:
        name = _dotted(call.func)
        last = name.rpartition(".")[2]
        if name.startswith("assert_size_stride") and isinstance(call.args[0], ast.Name):
            known = self.buffers.get(call.args[0].id, Buffer(0))
            self.buffers[call.args[0].id] = Buffer(_numel(call.args[1]), known.item_bytes, known.dtype)
        elif last == "run" and name.startswith("triton"):
            self._run(name.removesuffix(".run"), call)
        elif name.startswith("extern_kernels."):
            self.code.launches.append(Launch("product" if last in PRODUCTS else "aten", last))
        elif "varlen_attn" in name:
            self.code.launches.append(Launch("attention", name.rpartition("torch_attn.")[2]))
        elif name.startswith(("torch.ops.", "aten.")) and ".view." not in name:
            moved = sum(_bytes(self._buffer(keyword.value)) for keyword in call.keywords if keyword.arg == "out")
            self.code.launches.append(Launch("aten", name.removeprefix("torch.ops."), moved))
        elif last == "sum" and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
            # What a kernel left in its workspace, one part of it a program: fp32.
            self.code.launches.append(Launch("aten", "sum", 4 * _product(call.func.value.args)))

    def _run(self, name: str, call: ast.Call) -> None:
        moved, sizes = 0, []
        for (argument, kind), value in zip(self.signatures[name].items(), call.args, strict=True):
            if kind.startswith("*"):
                buffer = self._buffer(value)
                elements = buffer.numel if buffer is not None else 0
                moved += elements * ITEM_BYTES[kind[1:]] * (2 if argument.startswith("in_out") else 1)
            elif argument.endswith("numel"):
                sizes.append(_product([value]))
        self.code.launches.append(Launch("triton", name, moved, tuple(sizes)))


def _bytes(buffer: Buffer | None) -> int:
    return buffer.numel * (buffer.item_bytes or 0) if buffer is not None else 0


def _numel(shape: ast.expr) -> int:
    return _product(shape.elts) if isinstance(shape, ast.Tuple) else 0


def _product(sizes: list[ast.expr]) -> int:
    values = [size.value if isinstance(size, ast.Constant) and isinstance(size.value, int) else 0 for size in sizes]
    return math.prod(values)


def _dotted(value: ast.expr) -> str:
    """`torch.ops.aten.mm.default`; of the last part alone where what is before it is no name."""
    if isinstance(value, ast.Name):
        return value.id
    if isinstance(value, ast.Attribute):
        before = _dotted(value.value)
        return f"{before}.{value.attr}" if before else value.attr
    return ""
