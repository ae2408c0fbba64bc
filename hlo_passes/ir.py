"""The one door to jaxlib's MLIR: context, parsing, printing, and the few walks every pass needs."""

import functools
import io
import re
from collections.abc import Callable, Iterator

from jax._src.interpreters import mlir as _jax_mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import chlo, func, sdy, stablehlo

from kernels.errors import CompileError

__all__ = [
    "chlo",
    "context",
    "func",
    "functions",
    "ir",
    "main",
    "module_bytes",
    "parse",
    "run_mlir_passes",
    "sdy",
    "source_line",
    "stablehlo",
    "walk",
]


@functools.cache
def context() -> ir.Context:
    """The process's MLIR context, with every dialect JAX uses, and that of quantised types."""
    stablehlo.register_stablehlo_passes()
    ir.register_type_caster(_dense_elements_typeid(), replace=True)(_dense_elements)
    made = _jax_mlir.make_ir_context()
    with made:
        # JAX does not register the quant dialect, but a pass that depends on it brings it along.
        passmanager.PassManager.parse("builtin.module(vhlo-legalize-to-stablehlo)").run(
            ir.Module.parse("module {}").operation
        )
    return made


def _dense_elements_typeid() -> ir.TypeID:
    with ir.Context(), ir.Location.unknown():
        number = ir.RankedTensorType.get([], ir.F32Type.get())
        return ir.DenseElementsAttr.get_splat(number, ir.FloatAttr.get_f32(0.0)).typeid


def _dense_elements(attribute: ir.Attribute) -> ir.DenseElementsAttr:
    """The Python class of a dense constant; jaxlib's own choice refuses complex and quantised elements."""
    element = ir.ShapedType(attribute.type).element_type
    if isinstance(element, ir.IntegerType | ir.IndexType):
        return ir.DenseIntElementsAttr(attribute)
    return (ir.DenseFPElementsAttr if isinstance(element, ir.FloatType) else ir.DenseElementsAttr)(attribute)


def parse(text: str | bytes) -> ir.Module:
    """Parses StableHLO text or bytecode; raises ``ir.MLIRError`` where it is malformed."""
    with context():
        return ir.Module.parse(text)


def module_bytes(module: ir.Module) -> bytes:
    """The module with its locations as MLIR bytecode."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return buffer.getvalue()


def run_mlir_passes(module: ir.Module, pipeline: str) -> None:
    """Runs registered MLIR passes in place, e.g. ``"func.func(chlo-legalize-to-stablehlo),cse"``."""
    with module.context:
        passmanager.PassManager.parse(f"builtin.module({pipeline})").run(module.operation)


def functions(module: ir.Module | ir.Operation) -> dict[str, func.FuncOp]:
    """All functions by name."""
    ops = module.operation.regions[0].blocks[0].operations
    return {op.name.value: op for op in ops if isinstance(op, func.FuncOp)}


def main(module: ir.Module) -> func.FuncOp:
    """The entry function: ``@main``, else the first there is; raises CompileError where there is none."""
    found = functions(module)
    if not found:
        raise CompileError("the module has no function", fix="define func.func @main in it")
    return found["main"] if "main" in found else next(iter(found.values()))


def walk(op: ir.Operation | ir.OpView, visit: Callable[[ir.Operation], None]) -> None:
    """Calls ``visit`` on every op inside ``op``, inner ones first; ``visit`` may erase or replace its op."""
    for region in op.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                walk(inner, visit)
                visit(inner.operation)


_FRAME = re.compile(r'"([^"]+)":(\d+)')
# Libraries of layers: what calls them is the model.
_LAYERS = re.compile(r"/(?:site|dist)-packages/(?:flax|haiku|equinox|optax|einops)/")


def source_line(op: ir.Operation | ir.OpView) -> str:
    """``file:line`` of the user's innermost frame that made this op, or "" where it is unknown.

    Frames of libraries of layers count only where there are no others.
    """
    return _source_line(op.location.attr)


@functools.lru_cache(maxsize=65536)
def _source_line(location: ir.Attribute) -> str:
    frames = [f"{file}:{line}" for file, line in _frames(str(location))]
    return next((frame for frame in frames if not _LAYERS.search(frame)), frames[0] if frames else "")


def _frames(location: str) -> Iterator[tuple[str, str]]:
    for file, line in _FRAME.findall(location):
        if file != "-":
            yield file, line
