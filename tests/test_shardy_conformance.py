"""Shardy's executable partitioner tests: the same programs through our partitioner give the same values."""

import re
from pathlib import Path

import numpy as np
import pytest
import ring_oracle
from oracles import run_local_on_xla, run_on_xla

from hlo_passes import canonicalize, shard
from hlo_passes.ir import context, func, functions, ir, parse, walk
from hlo_passes.local import num_ranks

NAMES = [
    "sdy_all_gather",
    "sdy_all_to_all",
    "sdy_collective_permute_with_self_loops",
    "sdy_collective_permute_without_self_loops",
    "sdy_constant",
    "sdy_reduce_scatter",
    "stablehlo_all_reduce",
    "stablehlo_collective_permute",
    "stablehlo_concatenate",
    "stablehlo_convolution_shard_batch",
    "stablehlo_convolution_shard_batch_group",
    "stablehlo_convolution_shard_contracting_dim",
    "stablehlo_convolution_shard_feature_group",
    "stablehlo_dot_general",
    "stablehlo_fft",
    "stablehlo_gather_shard_reduction_dim_is_collapsed",
    "stablehlo_gather_shard_reduction_dim_is_collapsed_not_in_start_index_map",
    "stablehlo_gather_shard_two_reduction_dims",
    "stablehlo_pad_non_sharded",
    "stablehlo_pad_sharded_non_uniform",
    "stablehlo_reduce_window",
    "stablehlo_select_and_scatter",
    "stablehlo_slice",
    "stablehlo_reverse",
    "gather_iota_concat_batch_dim",
]


def program(conformance: Path, name: str) -> tuple[str, str]:
    """The sharded functions and the ``main`` that feeds and checks them."""
    (file,) = (conformance / "shardy").glob(f"*__{name}.mlir")
    _, _, text = file.read_text().partition("//--- part1.mlir")
    part1, _, part2 = text.partition("//--- part2.mlir")
    return part1, part2


def alone(text: str, name: str) -> ir.Module:
    """The module with only function ``name``, or the only one there is, under another name in part 2."""
    module = parse(text)
    functions = [op for op in module.body.operations if isinstance(op, func.FuncOp)]
    chosen = [f for f in functions if f.name.value == name]
    chosen = (chosen or [f for f in functions if f.name.value.startswith("parallel")] or functions)[0]
    for function in functions:
        if function != chosen:
            function.operation.erase()
    with module.context:
        chosen.attributes["sym_name"] = ir.StringAttr.get("main")
    return module


def unsharded(text: str, name: str) -> str:
    """Function ``name`` without its shardings, to be called on one device."""
    module = alone(text, name)
    function = functions(module)["main"]

    def strip(op: ir.Operation) -> None:
        if op.name.startswith("sdy.") and op.name not in ("sdy.mesh",):
            op.results[0].replace_all_uses_with(op.operands[0])
            op.erase()
        elif "sdy.sharding" in op.attributes:
            del op.attributes["sdy.sharding"]

    with module.context:
        walk(function.operation, strip)
        for key in ("arg_attrs", "res_attrs"):
            if key in function.attributes:
                del function.attributes[key]
        function.attributes["sym_name"] = ir.StringAttr.get(name)
        function.attributes["sym_visibility"] = ir.StringAttr.get("private")
    return str(function)


# Part 2 in the forms jaxlib parses: checks and run_parallel in generic form, with a type for each operand.
_CHECK = re.compile(r"^\s*check\.expect_eq (\S+), (\S+) : (\S+)$", re.MULTILINE)
_RUN = re.compile(
    r'(?P<head>"interpreter.run_parallel"\((?P<operands>[^)]*)\).*?)'
    r" : \((?P<type>[^,)]+)\) -> \((?P<result>[^,)]+)\)",
    re.DOTALL,
)


def mended(text: str) -> str:
    def repeat(match: re.Match[str]) -> str:
        count = len(match["operands"].split(","))
        types = [", ".join([match[kind]] * count) for kind in ("type", "result")]
        return f"{match['head']} : ({types[0]}) -> ({types[1]})"

    text = text.replace("iota dims = [0]", "iota dim = 0")
    text = _CHECK.sub(r'"check.expect_eq"(\1, \2) : (\3, \3) -> ()', text)
    return _RUN.sub(repeat, text)


class Judge:
    """Part 2 in two stages: what goes into the parallel runs, and the checks on what comes out."""

    def __init__(self, part1: str, part2: str) -> None:
        called = sorted(set(re.findall(r"func\.call @(\w+)", part2)))
        self.helpers = "\n".join(unsharded(part1, name) for name in called)
        context().allow_unregistered_dialects = True
        try:
            self.module = parse(mended(part2) + self.helpers)
        finally:
            context().allow_unregistered_dialects = False
        # A program without parallel runs rewrites a function: ours is the rewritten one.
        self.runs = self._ops("interpreter.run_parallel") or self._ops("func.call")[:1]
        self.checks = self._ops("check.expect_eq")

    def _ops(self, kind: str) -> list[ir.Operation]:
        main = functions(self.module)["main"]
        return [v.operation for v in main.regions[0].blocks[0].operations if v.operation.name == kind]

    def evaluate(self, wanted: list[ir.Value], given: dict[ir.Value, np.ndarray]) -> list[np.ndarray]:
        """The values ``wanted``, where the parallel runs gave ``given``."""
        if not wanted:
            return []
        names = {value: f"%given{n}" for n, value in enumerate(given)}
        lines, known = [], dict(names)
        main = functions(self.module)["main"]
        for view in main.regions[0].blocks[0].operations:
            op = view.operation
            if op.name.startswith(("interpreter.", "check.", "func.return")):
                continue
            if any(v not in known for v in op.operands) or any(v in given for v in op.results):
                continue
            for number, result in enumerate(op.results):
                known[result] = f"%v{len(known)}_{number}"
            lines.append(statement(op, known))
        types = ", ".join(str(v.type) for v in wanted)
        arguments = ", ".join(f"{names[v]}: {v.type}" for v in given)
        body = "\n".join(lines)
        returned = ", ".join(known[v] for v in wanted)
        text = (
            f"module {{ func.func @main({arguments}) -> ({types}) {{\n{body}\n"
            f"return {returned} : {types} }}\n{self.helpers} }}"
        )
        return run_on_xla(text, list(given.values()))


def statement(op: ir.Operation, names: dict[ir.Value, str]) -> str:
    """The op in generic form with its operands and results named anew."""
    text = op.get_asm(print_generic_op_form=True)
    head, _, rest = text.partition(" = ")
    opened, _, rest = rest.partition("(")
    _, _, rest = rest.partition(")")
    assert head.startswith("%"), text
    return f"{names[op.results[0]]} = {opened}({', '.join(names[v] for v in op.operands)}){rest}"


def run_sharded(part1: str, run: ir.Operation, operands: list[np.ndarray]) -> list[np.ndarray]:
    """One parallel run: its operands are those of rank 0, then those of rank 1, and so on."""
    if run.name == "func.call":
        module = alone(part1, "")
        canonicalize.run(module, canonicalize.Options())
        shard.run(module, shard.Options(tp=4))
        return ring_oracle.run_sharded(module, operands, 4)
    names = re.findall(r"@(\w+)", str(run.attributes["programs"]))
    module = alone(part1, names[0])
    canonicalize.run(module, canonicalize.Options())
    shard.run(module, shard.Options(tp=len(names)))
    assert module.operation.verify()
    assert num_ranks(module) == len(names)
    count = len(operands) // len(names)
    ranks = [operands[i * count : (i + 1) * count] for i in range(len(names))]
    inputs = functions(module)["main"].type.inputs
    assert [list(x.shape) for x in ranks[0]] == [list(t.shape) for t in inputs]
    return [result for rank in run_local_on_xla(str(module), ranks) for result in rank]


@pytest.mark.parametrize("name", NAMES)
def test_executable_program(conformance, name):
    part1, part2 = program(conformance, name)
    judge = Judge(part1, part2)
    feeds = [value for run in judge.runs for value in run.operands]
    values = iter(judge.evaluate(feeds, {}))
    given: dict[ir.Value, np.ndarray] = {}
    for run in judge.runs:
        operands = [next(values) for _ in run.operands]
        given |= dict(zip(run.results, run_sharded(part1, run, operands), strict=True))
    checked = judge.evaluate([value for check in judge.checks for value in check.operands], given)
    assert checked, "no check"
    for actual, expected in zip(checked[::2], checked[1::2], strict=True):
        np.testing.assert_array_equal(actual, expected)
