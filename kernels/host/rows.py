"""Programs of rows as XLA custom calls, compiled by LLVM alone, which takes some milliseconds."""

from typing import Any

from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from kernels.host.elements import INT, call, constant
from kernels.host.frame import answer_query, argument, data, num_arguments, num_results, result
from kernels.host.memory import function_address, store_word, word
from kernels.host.pool import (
    FIRST_OWN_WORD,
    finish_tile,
    new_job,
    next_tile,
    release_job,
    share_job,
    wait_for_job,
)
from kernels.host.row_blocks import build_block
from kernels.host.row_program import row_program

__all__ = ["compile_rows"]

_BLOCK, _ROWS, _AT_A_TIME, _ARRAYS = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 4)

_TILE_ELEMENTS = 1 << 14
"""Of a tile, which takes a thread some microseconds."""


@intrinsic
def _compute_rows(typing, function, arrays, first, last):
    """Calls the compiled block, the function at an address, on some rows."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        function, *given = arguments
        kind = ir.FunctionType(ir.VoidType(), [INT[64]] * len(given))
        b.call(b.inttoptr(function, kind.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@njit
def _work(job):
    tile = next_tile(job)
    while tile >= 0:
        rows, step = word(job, _ROWS), word(job, _AT_A_TIME)
        first = tile * step
        _compute_rows(word(job, _BLOCK), job + 8 * _ARRAYS, first, min(rows, first + step))
        finish_tile(job)
        tile = next_tile(job)
    release_job(job)


@njit
def _run(frame, block, rows, n, task):
    """Makes the job and works on it with others; words from ``_ARRAYS`` on are where arrays begin."""
    step = max(1, _TILE_ELEMENTS // n)
    job = new_job((rows + step - 1) // step)
    store_word(job, _BLOCK, block)
    store_word(job, _ROWS, rows)
    store_word(job, _AT_A_TIME, step)
    taken = num_arguments(frame)
    for number in range(taken):
        store_word(job, _ARRAYS + number, data(argument(frame, number)))
    for number in range(num_results(frame)):
        store_word(job, _ARRAYS + taken + number, data(result(frame, number)))
    share_job(frame, job, task, True)
    wait_for_job(job)
    release_job(job)


_COMPILED: list[Any] = []
"""Keeps what XLA calls by address."""

_HANDLER = "neuronx_run_rows"


def _compile_run(stamp: str) -> None:
    """The part that is the same for all programs, as a function of frame, block, rows and columns."""
    task_name = f"neuronx_rows_task_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        _work(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp,intp,intp,intp)", cache=True)
    def run(frame, block, rows, n):
        if not answer_query(frame):
            _run(frame, block, rows, n, function_address(task_name))
        return 0

    binding.add_symbol(_HANDLER, run.address)
    _COMPILED.extend((task, run))


def compile_rows(target: str, stamp: str) -> int:
    """The address of the compiled XLA handler of the program of a target of ``row_program.row_target``.

    Operands and results lie in memory as rows, whatever their dims are.
    """
    if not _COMPILED:
        _compile_run(stamp)
    program = row_program(target)
    module = ir.Module()
    block = build_block(program, module)
    handler = ir.Function(module, ir.FunctionType(INT[64], [INT[64]]), "handler")
    b = ir.IRBuilder(handler.append_basic_block())
    given = [*handler.args, b.ptrtoint(block, INT[64]), constant(program.rows), constant(program.n)]
    b.ret(call(b, _HANDLER, INT[64], given))
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=2
    )
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=1))
    passes.getModulePassManager().run(parsed, passes)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _COMPILED.append(engine)
    return engine.get_function_address("handler")
