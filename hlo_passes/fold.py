"""Pass fold: of a long run of equal layers four are left, with a word of how many there are."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hlo_passes.folded import EDGE, Chain, Folded, body, mark
from hlo_passes.ir import func, functions, ir, main
from hlo_passes.ops import nested_operands
from hlo_passes.periods import Run, find_run
from hlo_passes.signature import ALIAS, Attributes, read_attributes, write_signature
from hlo_passes.slices import slice_before_broadcast

__all__ = ["Options", "run"]

# JAX's name of a result, which no pass reads.
_NAME = "jax.result_info"


@dataclass(frozen=True, kw_only=True)
class Options:
    """``least``: how many layers must go for the trouble to be worth it."""

    least: int = 2


def run(module: ir.Module, options: Options) -> None:
    """Cuts the longest run of equal layers down to four, if that leaves out ``least`` layers.

    What is left is a module in its own right, of a network of fewer layers; ``unfold`` puts the others in
    again. Nothing is done where a layer is missed: where something but the next layer reads what it makes
    (results of main excepted, one of each layer) or takes. A layer has arguments of its own; a mere chain of
    ops has none, and becomes one kernel.
    """
    slice_before_broadcast(module)
    with module.context, ir.Location.unknown():
        function = main(module)
        ops = body(function)
        found = find_run(ops, functions(module))
        if found is None or not found.following or found.count < 2 * EDGE + options.least:
            return
        cut = _Cut(function, ops, found)
        if cut.is_legal():
            cut.apply()
            mark(module, cut.folded)


class _Cut:
    """The layers of a run that are to go, and what becomes of those that read something of theirs."""

    def __init__(self, function: func.FuncOp, ops: Sequence[ir.Operation], found: Run) -> None:
        self._function, self._ops, self._run = function, ops, found
        self._made = {value: (at, n) for at, op in enumerate(ops) for n, value in enumerate(op.results)}
        self._terminator = function.entry_block.operations[len(ops)].operation
        self._attributes = read_attributes(function)
        extra = found.count - 2 * EDGE
        self._shift = extra * found.period
        self._first = found.start + EDGE * found.period
        self._last = self._first + self._shift
        self.folded = Folded(extra=extra, arguments=self._argument_chains(), results=self._result_chains())
        self._arguments = self.folded.left_out(self.folded.arguments)
        self._results = self.folded.left_out(self.folded.results)

    def _argument_chains(self) -> tuple[Chain, ...]:
        following, later = self._run.following, set(self._run.following.values())
        chains = []
        for value in (value for value in following if value not in later):
            chain = [value]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(tuple(ir.BlockArgument(argument).arg_number for argument in chain))
        return tuple(chains)

    def _result_chains(self) -> tuple[Chain, ...]:
        """The results of main that come from one place of every layer."""
        found: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, value in enumerate(self._terminator.operands):
            at, n = self._made.get(value, (-1, 0))
            if self._run.start <= at < self._run.end:
                layer, place = divmod(at - self._run.start, self._run.period)
                found[place, n][layer].append(number)
        whole = [layers for layers in found.values() if len(layers) == self._run.count]
        return tuple(
            chain
            for layers in whole
            for chain in zip(*(numbers for _, numbers in sorted(layers.items())), strict=False)
        )

    def is_legal(self) -> bool:
        """Whether all layers have the same arguments and results, and nobody misses those that go."""
        chains, following = self.folded.arguments, self._run.following
        # Arguments that follow upon one another in a circle are in no chain.
        if sum(len(chain) - 1 for chain in chains) != len(following):
            return False
        if any(len(chain) != self._run.count for chain in chains):
            return False
        return self._are_alike() and not any(self._missed())

    def _are_alike(self) -> bool:
        """Whether what is said of arguments and results is the same for all layers."""
        arguments, results = (
            [{name: row[name] for name in row if name not in (ALIAS, _NAME)} for row in self._attributes[key]]
            for key in ("arg_attrs", "res_attrs")
        )
        rows = [[arguments[number] for number in chain] for chain in self.folded.arguments]
        rows += [[results[number] for number in chain] for chain in self.folded.results]
        return all(row == chain[0] for chain in rows for row in chain) and self._donate_alike()

    def _donate_alike(self) -> bool:
        """Whether the layers' arguments are donated to results of the same layer, and no others to these."""
        given = {
            number: row[ALIAS].value
            for number, row in enumerate(self._attributes["arg_attrs"])
            if ALIAS in row
        }
        chains = {tuple(given.pop(number, None) for number in chain) for chain in self.folded.arguments}
        of_layers = {number for chain in self.folded.results for number in chain}
        return chains - {(None,) * self._run.count} <= set(self.folded.results) and of_layers.isdisjoint(
            given.values()
        )

    def _missed(self) -> Iterator[ir.Value]:
        """What is read of the layers that go and cannot be had from those that stay."""
        yield from (
            value
            for number, value in enumerate(self._terminator.operands)
            if number not in self._results and self._goes(value)
        )
        for at, op in enumerate(self._ops):
            if self._last <= at < self._run.end:
                stand_ins = [self._stand_in(value) for _, _, value in nested_operands(op)]
                yield from (value for value in stand_ins if value is None or self._goes(value))
            elif not self._first <= at < self._last:
                yield from (value for _, _, value in nested_operands(op) if self._goes(value))

    def _goes(self, value: ir.Value) -> bool:
        if value in self._made:
            return self._first <= self._made[value][0] < self._last
        return isinstance(value, ir.BlockArgument) and (
            value.owner == self._function.entry_block and value.arg_number in self._arguments
        )

    def _stand_in(self, value: ir.Value) -> ir.Value | None:
        """What a layer after the gap takes for ``value``: what the layer before the gap made in its place."""
        at, n = self._made.get(value, (-1, 0))
        if not self._run.start <= at < self._last:
            return value
        return self._ops[at - self._shift].results[n] if at - self._shift >= self._run.start else None

    def apply(self) -> None:
        for op in self._ops[self._last : self._run.end]:
            for inner, number, value in list(nested_operands(op)):
                inner.operands[number] = self._stand_in(value)
        results = [n for n in range(len(self._terminator.operands)) if n not in self._results]
        returned = [self._terminator.operands[number] for number in results]
        with ir.InsertionPoint(self._terminator), self._terminator.location:
            func.ReturnOp(returned)
        self._terminator.erase()
        for op in reversed(self._ops[self._first : self._last]):
            op.erase()
        block = self._function.entry_block
        arguments = [n for n in range(len(block.arguments)) if n not in self._arguments]
        for number in sorted(self._arguments, reverse=True):
            block.erase_argument(number)
        write_signature(self._function, self._kept_attributes(arguments, results))

    def _kept_attributes(self, arguments: Sequence[int], results: Sequence[int]) -> Attributes:
        new_numbers = {number: new for new, number in enumerate(results)}
        rows = [dict(self._attributes["arg_attrs"][number]) for number in arguments]
        for row in rows:
            if ALIAS in row:
                row[ALIAS] = ir.IntegerAttr.get(row[ALIAS].type, new_numbers[row[ALIAS].value])
        return {"arg_attrs": rows, "res_attrs": [self._attributes["res_attrs"][n] for n in results]}
