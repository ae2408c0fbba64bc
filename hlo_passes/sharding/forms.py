"""The local forms of global values: how each lies, and how it comes to lie otherwise."""

import contextlib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.recompute import ops_to_repeat
from hlo_passes.sharding.reshard import Mover, reshard
from hlo_passes.sharding.spec import Sharding, shape_of
from hlo_passes.sharding.traffic import received_elements

__all__ = ["Env", "Forms"]

Env = dict[ir.Value, tuple[ir.Value, Sharding]]
"""What each global value is on a core, and how it lies."""


class Forms:
    """The forms of the values in ``env``; those made later are found again by everything that reads them."""

    def __init__(self, env: Env, emit: Emitter) -> None:
        self._env, self._emit = env, emit
        self._forms: ChainMap[tuple[ir.Value, tuple[int, ...]], Mapping[Sharding, ir.Value]] = ChainMap()

    @contextlib.contextmanager
    def inside(self, block: ir.Block) -> Iterator[None]:
        """Emits into ``block``; what is moved there is not known outside."""
        outer, self._emit.point = self._emit.point, ir.InsertionPoint(block)
        self._forms = self._forms.new_child()
        yield
        self._emit.point, self._forms = outer, self._forms.parents

    def take(
        self, values: Sequence[ir.Value], shardings: Sequence[Sharding]
    ) -> tuple[list[ir.Value], list[tuple[ir.Value, Mover]]]:
        """The local forms of what one op reads, each made of the nearest there is, and what moved."""
        there = [self._env[value] for value in values]
        if all(have == want for (_, have), want in zip(there, shardings, strict=True)):
            return [local for local, _ in there], []
        movers: dict[tuple[ir.Value, tuple[int, ...], Sharding], tuple[ir.Value, Mover]] = {}
        for value, sharding in zip(values, shardings, strict=True):
            forms, shape = self._known(value), shape_of(value)
            if sharding not in forms:
                have = min(forms, key=lambda form: self._distance(shape, form, sharding))
                moved, _ = self._distance(shape, have, sharding)
                if moved and self._make_again(value, moved):
                    forms, have = self._known(value), Sharding.whole(shape)
                mover = Mover(self._emit, forms[have], shape, have, sharding)
                movers[self._env[value][0], shape, sharding] = value, mover
        reshard([mover for _, mover in movers.values()])
        for value, mover in movers.values():
            self._remember(value, mover.new, mover.value)
        return [self._known(v)[s] for v, s in zip(values, shardings, strict=True)], list(movers.values())

    def lying(self, value: ir.Value) -> Sharding:
        """How a value lies whose rows are to move: whole where every core soon computes all of it."""
        is_whole = self._is_whole(value) or self._make_again(value, 0)
        return Sharding.whole(shape_of(value)) if is_whole else self._env[value][1]

    def _make_again(self, value: ir.Value, moved_elements: float) -> bool:
        """Has every core compute all of ``value``, where that is done sooner than so much is moved."""
        ops = ops_to_repeat(value, self._is_whole, moved_elements)
        for op in ops or ():
            operands, _ = self.take(op.operands, [Sharding.whole(shape_of(v)) for v in op.operands])
            new = self._emit.copy(op, operands)
            self._remember(op.results[0], Sharding.whole(shape_of(op.results[0])), new.results[0])
        return ops is not None

    def _is_whole(self, value: ir.Value) -> bool:
        return value in self._env and Sharding.whole(shape_of(value)) in self._known(value)

    def _remember(self, value: ir.Value, sharding: Sharding, local: ir.Value) -> None:
        forms = self._known(value) | {sharding: local}
        self._forms |= {(form, shape_of(value)): forms for form in forms.values()}

    def _known(self, value: ir.Value) -> dict[Sharding, ir.Value]:
        """The local forms there are of a global value."""
        local, have = self._env[value]
        return {**self._forms.get((local, shape_of(value)), {}), have: local}

    def _distance(self, shape: tuple[int, ...], have: Sharding, want: Sharding) -> tuple[float, bool]:
        """How far a form is from another; to cut a whole one needs no look at how blocks lie."""
        return received_elements(self._emit.mesh, have, want, shape), not have.is_whole
