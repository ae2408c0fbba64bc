"""Pass unfold: the layers that fold left out are put in again, as copies of one that is there."""

from collections.abc import Iterator, Sequence

from hlo_passes.folded import Chain, Folded, UnsteadyError, body, folded, steady_run, unmark
from hlo_passes.ir import func, ir, main
from hlo_passes.ops import inner_ops, nested_operands
from hlo_passes.signature import ALIAS, Attributes, read_attributes, write_signature
from hlo_passes.spec import NoOptions as Options

__all__ = ["Options", "run"]


def run(module: ir.Module, options: Options) -> None:
    """Makes a FUSED module of as many layers as there were before ``fold``; others are left alone.

    Two neighbouring layers that came out equal show what a layer takes of the one before it. Copies of the
    first are put between them, so that all ops, arguments and results stand where they would stand had all
    layers come the whole way.

    Raises:
      UnsteadyError: no two layers are equal, or more than the next one reads what a layer makes.
    """
    record = folded(module)
    if record is None:
        return
    with module.context, ir.Location.unknown():
        _Unfolding(main(module), record).apply()
        unmark(module)


_Source = tuple[int, int]
"""Where an argument or result of the whole comes from: a position of the folded one, and which copy of it."""

_Values = dict[ir.Value, ir.Value]


class _Unfolding:
    """The steady layer begins at op ``_start``, its like at ``_next``, what follows that at ``_end``.

    Copies go in front of ``_next``: what is read or made before belongs to layers counted from the front,
    what comes after to layers counted from the back.
    """

    def __init__(self, function: func.FuncOp, record: Folded) -> None:
        self._function, self._record = function, record
        self._ops = body(function)
        found = steady_run(function, record)
        self._start, self._next = found.start, found.start + found.period
        self._end = self._next + found.period
        self._made = {value: (at, n) for at, op in enumerate(self._ops) for n, value in enumerate(op.results)}
        self._arguments = list(function.arguments)
        self._terminator = function.entry_block.operations[len(self._ops)].operation
        self._returned = list(self._terminator.operands)

    def apply(self) -> None:
        attributes = read_attributes(self._function)
        arguments, results = self._argument_sources(), self._result_sources()
        if any(
            self._is_steady(value) for op in self._ops[self._end :] for _, _, value in nested_operands(op)
        ):
            raise UnsteadyError("what follows its layers reads one of those in the middle")
        block = self._function.entry_block
        old = [self._arguments[own] for own, _ in arguments]
        new = [block.add_argument(argument.type, argument.location) for argument in old]
        given: list[_Values] = [{} for _ in range(self._record.extra + 1)]
        for (_, copy), argument, value in zip(arguments, old, new, strict=True):
            given[copy][argument] = value
        copies = self._copy(given)
        returned = [
            copies[copy][self._returned[own]] if copy else self._returned[own] for own, copy in results
        ]
        with ir.InsertionPoint(self._terminator), self._terminator.location:
            func.ReturnOp(returned)
        self._terminator.erase()
        for argument, value in given[0].items():
            argument.replace_all_uses_with(value)
        for _ in self._arguments:
            block.erase_argument(0)
        write_signature(self._function, _spread(attributes, self._record, arguments, results))

    def _in_steady(self, at: int) -> bool:
        return self._start <= at < self._next

    def _is_steady(self, value: ir.Value) -> bool:
        return value in self._made and self._in_steady(self._made[value][0])

    def _argument_sources(self) -> list[_Source]:
        """Of every argument of the whole."""
        numbers = {argument: number for number, argument in enumerate(self._arguments)}
        readers: list[set[int]] = [set() for _ in self._arguments]
        for at, op in enumerate([*self._ops, self._terminator]):
            for _, _, value in nested_operands(op):
                if value in numbers:
                    readers[numbers[value]].add(at)
        steady = []
        for chain in self._record.kept(self._record.arguments):
            layers = [layer for layer, own in enumerate(chain) if any(map(self._in_steady, readers[own]))]
            layer = layers[0] if layers else 0
            early = (at for own in chain[: layer + 1] for at in readers[own] if at >= self._next)
            late = (at for own in chain[layer + 1 :] for at in readers[own] if at < self._next)
            if any(early) or any(late) or not (layers or all(not readers[own] for own in chain)):
                raise UnsteadyError("an argument of one layer is read in another")
            steady.append(layer)
        return _sources(self._record, self._record.arguments, steady, len(self._arguments))

    def _result_sources(self) -> list[_Source]:
        """Of every result of the whole."""
        steady = []
        chains = self._record.kept(self._record.results)
        for chain in chains:
            made = [self._made.get(self._returned[own], (-1, 0)) for own in chain]
            layer = next((layer for layer, (at, _) in enumerate(made[:-1]) if self._in_steady(at)), None)
            if layer is None or not self._is_regular(made, layer):
                raise UnsteadyError("a result of its layers is not made at one place of each")
            steady.append(layer)
        members = {own for chain in chains for own in chain}
        if any(self._is_steady(value) for own, value in enumerate(self._returned) if own not in members):
            raise UnsteadyError("a result comes from one of the layers in the middle")
        return _sources(self._record, self._record.results, steady, len(self._returned))

    def _is_regular(self, made: Sequence[tuple[int, int]], layer: int) -> bool:
        """Whether results come from before, from one place of both equal layers, and from after."""
        (first, n), (second, m) = made[layer], made[layer + 1]
        return (
            (second - first, m) == (self._next - self._start, n)
            and all(0 <= at < self._start for at, _ in made[:layer])
            and all(at >= self._end for at, _ in made[layer + 2 :])
        )

    def _copy(self, given: Sequence[_Values]) -> list[_Values]:
        """Puts the copies in; what stands for the steady layer's values in it (0) and in each copy.

        ``given`` are the arguments of each copy, by what they are copies of.
        """
        steady, following = self._ops[self._start : self._next], self._ops[self._next : self._end]
        point = ir.InsertionPoint(following[0])
        reads = [list(self._reads(op, later, given[1])) for op, later in zip(steady, following, strict=True)]
        copies: list[_Values] = [{value: value for op in steady for value in op.results}]
        for arguments in given[1:]:
            own = {**arguments}
            for op, taken in zip(steady, reads, strict=True):
                made = op.clone(ip=point).operation
                inside = [made, *inner_ops(made)] if any(at for at, *_ in taken) else [made]
                for at, number, is_carried, value in taken:
                    inside[at].operands[number] = copies[-1][value] if is_carried else own[value]
                own.update(zip(op.results, made.results, strict=True))
            copies.append(own)
        for op in following:
            for inner, number, value in list(nested_operands(op)):
                if self._is_steady(value):
                    inner.operands[number] = copies[-1][value]
        return copies

    def _reads(
        self, op: ir.Operation, later: ir.Operation, arguments: _Values
    ) -> Iterator[tuple[int, int, bool, ir.Value]]:
        """What a copy of ``op``, whose like in the next layer is ``later``, does not read as ``op`` does.

        Each: in which op (0: itself, then those inside), which operand, whether the layer before makes it,
        and the value of the steady layer that it is a copy of.
        """
        pairs = zip((op, *inner_ops(op)), (later, *inner_ops(later)), strict=True)
        for at, (here, there) in enumerate(pairs):
            for number, (value, next_value) in enumerate(zip(here.operands, there.operands, strict=True)):
                if self._is_steady(next_value):
                    yield at, number, True, next_value
                elif self._is_steady(value) or value in arguments:
                    yield at, number, False, value


def _sources(record: Folded, chains: Sequence[Chain], steady: Sequence[int], count: int) -> list[_Source]:
    """Of every position of the whole, ``count`` of which are there; ``steady``: one layer of each chain."""
    found: dict[int, _Source] = {}
    for chain, kept, layer in zip(chains, record.kept(chains), steady, strict=True):
        for n, number in enumerate(chain):
            after = min(max(n - layer, 0), record.extra)
            found[number] = (kept[n - after], after if n <= layer + record.extra else 0)
    members = {own for own, _ in found.values()}
    rest = iter([own for own in range(count) if own not in members])
    whole = count + record.extra * len(chains)
    return [found[number] if number in found else (next(rest), 0) for number in range(whole)]


def _spread(
    attributes: Attributes, record: Folded, arguments: Sequence[_Source], results: Sequence[_Source]
) -> Attributes:
    """The attributes of the whole; a layer's argument is donated to the result of the same layer."""
    numbers = {source: number for number, source in enumerate(results)}
    layers = {number: layer for chain in record.arguments for layer, number in enumerate(chain)}
    kept = zip(record.kept(record.results), record.results, strict=True)
    chains = {own: chain for members, chain in kept for own in members}
    rows = []
    for number, (own, _) in enumerate(arguments):
        row = dict(attributes["arg_attrs"][own])
        if ALIAS in row:
            result = row[ALIAS].value
            whole = chains[result][layers[number]] if result in chains else numbers[result, 0]
            row[ALIAS] = ir.IntegerAttr.get(row[ALIAS].type, whole)
        rows.append(row)
    return {"arg_attrs": rows, "res_attrs": [attributes["res_attrs"][own] for own, _ in results]}
