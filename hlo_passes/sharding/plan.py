"""The plan where the user gave none: which classes of dims to shard over the tensor-parallel axis.

Each class is either sharded over the whole axis or not at all. Two classes that meet in one op cannot
both be (the axis would be used twice). Between a value and an op's view of it a plan may move data.
So the best plan is an integer program: one variable a class, one a view that is gathered, the objective
the seconds saved on the machine model, the constraint what HBM holds. Column- then row-wise sharding of
a transformer block is its outcome, not a pattern that is looked for.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hlo_passes.folded import Layers, UnsteadyError
from hlo_passes.ir import func, ir, source_line
from hlo_passes.ops import tensor
from hlo_passes.sharding.classes import Class, DimClasses
from hlo_passes.sharding.pose import find_weights, pose
from hlo_passes.sharding.prices import Prices
from hlo_passes.sharding.problem import Problem
from hlo_passes.sharding.search import Cut
from hlo_passes.spec import unknown

__all__ = ["NO_PLAN", "PLANS", "Plan", "Planner", "Solved", "check_plan", "make_plan"]

# "weights" cuts every weight that can be and hands results out whole where that costs little, as tensor
# parallelism is understood; "weights_still" does so and moves nothing to or from a product. The others look
# at seconds alone: "still" moves nothing to or from a product, "moving" may, "whole" cuts nothing.
PLANS = ("weights", "weights_still", "still", "moving", "whole")

# A plan in so many words: the numbers of its classes in the order of the program, each of one class, or of
# those that equal layers have in one place.
_EACH, _ALIKE = "classes", "layers"
_WRITTEN = re.compile(rf"({_EACH}|{_ALIKE}):(\d+(?:\+\d+)*|none)")

# A plan that moves values to where products want them must save this part of a step: below that the model
# is not exact enough to give up the plan that everybody knows.
_WORTH_MOVING = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The classes to shard, and the notes that tell the user what was left whole and why.

    ``text``: the same plan in so many words. ``contested``: the plan "weights_still" cuts the same weights
    and moves nothing to products: adding up seconds says that it is slower, and only the clock knows.
    ``prices_s``: predicted seconds of ops and collectives, one after the other, for this plan ("step_s") and
    nothing sharded ("replicated_s").
    """

    sharded: frozenset[Class]
    notes: tuple[str, ...]
    prices_s: Mapping[str, float]
    text: str = ""
    contested: bool = False


NO_PLAN = Plan(sharded=frozenset(), notes=(), prices_s={})


def check_plan(plan: str) -> None:
    """Raises CompileError where ``plan`` is neither one of ``PLANS`` nor written out as ``Plan.text`` is."""
    if plan not in PLANS and not _WRITTEN.fullmatch(plan):
        raise unknown("plan", plan, PLANS)


def make_plan(
    function: func.FuncOp, classes: DimClasses, plan: str, shards: int, prices: Prices, *,
    may_cut: Callable[[Class], bool] = lambda name: True,
) -> Plan:  # fmt: skip
    """Chooses the classes of dims to shard ``shards`` ways among those one ``may_cut``.

    ``plan`` is one of ``PLANS`` or written out; of one that was made for another function what there is of
    it here. In a folded function equal layers are sharded alike, and one of them counts for those left out.

    Raises:
      UnsteadyError: a folded function whose layers, left to themselves, would not be sharded alike.
    """
    if shards == 1:
        return NO_PLAN
    is_alike = plan.startswith(_ALIKE)
    planner = Planner(function, classes, shards, prices, may_cut=may_cut, is_alike=is_alike)
    return planner.plan(planner.solve(plan) if plan in PLANS else Solved(cut=planner.read(plan)))


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The plan of a name. ``is_contested``: see ``Plan``."""

    cut: Cut
    is_contested: bool = False


class Planner:
    """The plans of one function over ``shards`` cores.

    Equal layers are sharded alike where it is folded, or as ``is_alike`` asks.
    """

    def __init__(
        self, function: func.FuncOp, classes: DimClasses, shards: int, prices: Prices, *,
        may_cut: Callable[[Class], bool] = lambda name: True, is_alike: bool = False,
    ) -> None:  # fmt: skip
        self._function, self._shards, self._prices, self._may_cut = function, shards, prices, may_cut
        self._each, self._each_names = classes, classes.classes()
        self._kind = _ALIKE if is_alike or classes.layers.pairs else _EACH
        self._classes = classes.alike() if self._kind == _ALIKE else classes
        self._names = self._classes.classes()
        self._weights = find_weights(function.arguments, classes.ops)
        self.problem = self._pose(self._classes, classes.layers)
        self.num_ops = len(classes.ops)

    def solve(self, plan: str) -> Solved:
        """One of ``PLANS``, by the integer program.

        Raises:
          UnsteadyError: the layers of a folded function, left to themselves, would not be sharded alike.
        """
        if plan == "whole":
            return Solved(cut=frozenset())
        problem = self.problem if plan.startswith("weights") else self.problem.for_time()
        still, moving = (problem.joined(pairs).solve() for pairs in (problem.cuts, problem.stored))
        better_s = problem.value_s(moving) - problem.value_s(still)
        worth = better_s > _WORTH_MOVING * max(problem.step_s(still), 0.0)
        moves = plan == "moving" or (plan == "weights" and worth)
        chosen, other = (moving, still) if moves else (still, moving)
        if self._each.layers.pairs:
            alone = self._pose(self._each, Layers())
            alone = alone if plan.startswith("weights") else alone.for_time()
            if self._of_each(chosen) != alone.joined(alone.stored if moves else alone.cuts).solve():
                raise UnsteadyError("the best plan of a few layers is not the same for each")
        same = self._cut_weights(chosen) == self._cut_weights(other)
        return Solved(cut=chosen, is_contested=plan == "weights" and moves and same)

    def read(self, text: str) -> Cut:
        """The plan written out as ``text``, as far as this function has it."""
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        named = [self._names[number] for number in numbers if number < len(self._names)]
        cut, cuttable = frozenset(), set(self.problem.cuttable())
        for name in named:
            if name in cuttable and cut.isdisjoint(self.problem.meets[name]):
                cut |= {name}
        return cut

    def write(self, cut: Cut) -> str:
        """``cut`` as text: what ``read`` reads, of this function or of all its layers where it is folded."""
        numbers = [str(number) for number, name in enumerate(self._names) if name in cut]
        return f"{self._kind}:{'+'.join(numbers) or 'none'}"

    def plan(self, found: Solved) -> Plan:
        return Plan(
            sharded=self._of_each(found.cut),
            notes=tuple(self._notes(found.cut)),
            prices_s={"step_s": self.problem.step_s(found.cut), "replicated_s": self.problem.whole_s},
            text=self.write(found.cut),
            contested=found.is_contested,
        )

    def _pose(self, classes: DimClasses, layers: Layers) -> Problem:
        return pose(
            self._function, classes, self._weights, self._shards, self._prices,
            layers=layers, may_cut=self._may_cut,
        )  # fmt: skip

    def _of_each(self, cut: Cut) -> Cut:
        """``cut`` in the classes of each layer by itself."""
        return frozenset(name for name in self._each_names if self._classes.home(name) in cut)

    def _cut_weights(self, cut: Cut) -> set[ir.Value]:
        """The weights that have a dim in one of the classes."""
        return {weight for weight in self._weights if not cut.isdisjoint(self._classes.classes_of(weight))}

    def _notes(self, cut: Cut) -> Iterable[str]:
        """One line per weight that stays whole on every core."""
        cut_weights = self._cut_weights(cut)
        for weight in self._weights:
            if weight not in cut_weights:
                number = ir.BlockArgument(weight).arg_number
                line = next((source_line(use.owner) for use in weight.uses), "")
                yield (
                    f"weight argument {number} {weight.type} is replicated on {self._shards} cores "
                    f"({tensor(weight.type).size_bytes} B each): "
                    f"sharding it would cost more than it saves; used at {line or 'unknown line'}"
                )
