"""Products and the collectives next to them are cut up, so that the links work while the cores do."""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.collective_cost import cheapest
from distributed.topology import Topology, topology
from hlo_passes.collective_ops import blocks, erase_dead, lines, reducer, size_bytes, sole_user
from hlo_passes.ir import ir, main, run_mlir_passes
from hlo_passes.notes import add_notes
from hlo_passes.ops import kind, operations, replica_groups, tensor
from hlo_passes.product_ring import Cut, Ring, cuts, partial_work, whole_work
from kernels.cost import cost
from kernels.hardware import load_algorithms, load_core, load_links
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``instance``: the machine that is asked. ``least_gain``: the share of the time that must be saved."""

    instance: str = "inf2.48xlarge"
    least_gain: float = 0.05


def run(module: ir.Module, options: Options) -> None:
    """Takes apart what stands as product then reduction, or gather then products, where that is faster.

    - ``reduce_scatter(dot)``, ``all_reduce(dot)``: each core computes the block that is next on the ring
      while the sum of the one before travels; an all-reduce then gathers the finished blocks.
    - ``dot(all_gather)``: each core multiplies the block it has while it receives the next.

    Both are N products of 1/N and N - 1 permutes between neighbours. They are taken where the cost of the
    kernels and of the links says they save ``least_gain`` of the time, and only where each permute goes
    over one link, as the hardware wants. Sums are taken in another order, all else is exact.
    """
    notes: list[str] = []
    machine = _Machine(options)
    with module.context, ir.Location.unknown():
        entry = main(module).entry_block
        for block in blocks(entry):
            for op in operations(block):
                plan = _plan(op, machine)
                if plan is not None:
                    notes.append(plan.note())
                    plan.rewrite()
        if notes:
            erase_dead(entry)
            # Layers that count their positions each for itself would not be equal.
            run_mlir_passes(module, "cse")
    add_notes(module, notes)


class _Machine:
    """What kernels and collectives take on the instance."""

    def __init__(self, options: Options) -> None:
        self.ring: Topology = topology(options.instance)
        self.least_gain = options.least_gain
        self._core, self._links, self._available = load_core(), load_links(), load_algorithms()

    def kernel_s(self, work: KernelWork) -> float:
        return cost(work, self._core).latency_s

    def elementwise_s(self, whole: Tensor) -> float:
        """A kernel that adds two values."""
        op = OpWork(kind="add", operands=(whole, whole), results=(whole,))
        work = KernelWork(name="elementwise", ops=(op,), reads=op.operands, writes=op.results)
        return self.kernel_s(work)

    def move_s(self, part: Tensor) -> float:
        """A kernel that puts a value into another."""
        op = OpWork(kind="reshape", operands=(part,), results=(part,))
        return self.kernel_s(KernelWork(name="data_movement", ops=(op,), reads=(part,), writes=(part,)))

    def collective_s(self, name: str, groups: tuple[tuple[int, ...], ...], size: int) -> float:
        return cheapest(name, groups, size, self.ring, self._links, self._available).seconds

    def links_ring(self, groups: tuple[tuple[int, ...], ...]) -> bool:
        """Whether each rank and the next of its group are joined by one link."""
        pairs = [(rank, group[at - 1]) for group in groups for at, rank in enumerate(group)]
        return all(self.ring.hops(*pair) == 1 for pair in pairs)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A pattern found, the dim to cut, and the seconds before and after."""

    collective: ir.Operation
    products: tuple[ir.Operation, ...]
    narrowed: ir.Operation | None
    groups: tuple[tuple[int, ...], ...]
    cut: tuple[Cut, ...]
    before_s: float
    after_s: float

    def note(self) -> str:
        return (
            f"overlap: {kind(self.collective)} ({size_bytes(self.collective.operands)} B) and "
            f"{len(self.products)} dot_general in {len(self.groups[0])} steps: {self.before_s * 1e6:.1f} us "
            f"become {self.after_s * 1e6:.1f} us, {(self.before_s - self.after_s) * 1e6:.1f} us less: "
            f"{lines(self.products)}"
        )

    def rewrite(self) -> None:
        if kind(self.collective) == "all_gather":
            _rewrite_gather(self, Ring(self.groups, self.products[0]))
        else:
            _rewrite_reduction(self, Ring(self.groups, self.collective))


def _plan(op: ir.Operation, machine: _Machine) -> _Plan | None:
    if kind(op) not in _PLANS or len(op.operands) != 1:
        return None
    groups = replica_groups(op)
    if kind(op) == "all_reduce":
        groups = tuple(tuple(sorted(group)) for group in groups)
    if len({len(group) for group in groups}) != 1 or len(groups[0]) < 2 or not machine.links_ring(groups):
        return None
    plans = [
        plan
        for plan in _PLANS[kind(op)](op, groups, machine)
        if plan.before_s - plan.after_s > machine.least_gain * plan.before_s
    ]
    return min(plans, key=lambda plan: plan.after_s, default=None)


def _plan_reduction(op: ir.Operation, groups: tuple[tuple[int, ...], ...], machine: _Machine) -> list[_Plan]:
    """One plan for each dim of the product by which its result can be cut."""
    narrowed, dot = None, op.operands[0].owner
    if isinstance(op.operands[0], ir.OpResult) and kind(dot) == "convert":
        narrowed, dot = dot.operation, dot.operation.operands[0].owner
    if isinstance(dot, ir.Block) or kind(dot) != "dot_general" or reducer(op.regions[0]) != "add":
        return []
    dot = dot.operation
    used_once = [o for o in (dot, narrowed) if o is not None and sole_user(o.results[0]) is not None]
    if len(used_once) < 1 + (narrowed is not None) or dot.block != op.block:
        return []
    whole, count = tensor(op.operands[0].type), len(groups[0])
    only = op.attributes["scatter_dimension"].value if kind(op) == "reduce_scatter" else None
    before_s = machine.kernel_s(whole_work(dot, narrowed)) + machine.collective_s(
        kind(op), groups, whole.size_bytes
    )
    plans = []
    for cut in cuts(dot):
        if cut.result is None or whole.shape[cut.result] % count or only not in (None, cut.result):
            continue
        part_s = machine.kernel_s(partial_work(dot, narrowed, cut, count))
        shape = tuple(n // count if d == cut.result else n for d, n in enumerate(whole.shape))
        block = Tensor(shape=shape, dtype=whole.dtype)
        after_s = part_s + (count - 1) * (
            max(part_s, _send_s(groups, block, machine)) + machine.elementwise_s(block)
        )
        if kind(op) == "all_reduce":
            after_s += machine.collective_s("all_gather", groups, block.size_bytes)
        plans.append(
            _Plan(
                collective=op, products=(dot,), narrowed=narrowed, groups=groups, cut=(cut,),
                before_s=before_s, after_s=after_s,
            )
        )  # fmt: skip
    return plans


def _send_s(groups: tuple[tuple[int, ...], ...], block: Tensor, machine: _Machine) -> float:
    pairs = tuple((group[at - 1], rank) for group in groups for at, rank in enumerate(group))
    return machine.collective_s("collective_permute", pairs, block.size_bytes)


def _plan_gather(op: ir.Operation, groups: tuple[tuple[int, ...], ...], machine: _Machine) -> list[_Plan]:
    """The products that use the gathered value, if nothing else does."""
    gathered, dim = op.results[0], op.attributes["all_gather_dim"].value
    uses = [(use.owner.operation, use.operand_number) for use in gathered.uses]
    products = [user for user, _ in uses]
    fits = all(kind(user) == "dot_general" and user.block == op.block for user in products)
    if not products or not fits or len(set(products)) < len(products):
        return []
    order = operations(op.block)
    uses.sort(key=lambda use: order.index(use[0]))
    chosen = [
        next(cut for cut in cuts(user) if (cut.left, cut.right)[number] == dim) for user, number in uses
    ]
    block, count = tensor(op.operands[0].type), len(groups[0])
    if not _operands_are_there([user for user, _ in uses]):
        return []
    before_s = machine.collective_s("all_gather", groups, block.size_bytes)
    parts_s, more_s = 0.0, 0.0
    for (user, _), cut in zip(uses, chosen, strict=True):
        before_s += machine.kernel_s(whole_work(user, None))
        work = partial_work(user, None, cut, count)
        parts_s += machine.kernel_s(work)
        made = work.writes[0]
        more_s += machine.elementwise_s(made) if cut.result is None else machine.move_s(made)
    after_s = parts_s + (count - 1) * max(parts_s, _send_s(groups, block, machine)) + count * more_s
    return [
        _Plan(
            collective=op, products=tuple(user for user, _ in uses), narrowed=None, groups=groups,
            cut=tuple(chosen), before_s=before_s, after_s=after_s,
        )
    ]  # fmt: skip


def _operands_are_there(products: Sequence[ir.Operation]) -> bool:
    """Whether all that the products read is made before the first of them."""
    first = products[0]
    makers = [
        value.owner.operation
        for product in products
        for value in product.operands
        if isinstance(value, ir.OpResult) and value.owner.operation.block == first.block
    ]
    return all(maker.is_before_in_block(first) for maker in makers)


_PLANS = {"all_reduce": _plan_reduction, "reduce_scatter": _plan_reduction, "all_gather": _plan_gather}


def _rewrite_reduction(plan: _Plan, ring: Ring) -> None:
    """Step s computes the block of the core s + 1 behind, so that the sum of each block ends at its owner."""
    (dot,), (cut,) = plan.products, plan.cut
    total = None
    for step in range(ring.count):
        sent = None if total is None else ring.send(total)
        operands = [
            value if dim is None else ring.take(value, dim, -(step + 1))
            for value, dim in zip(dot.operands, (cut.left, cut.right), strict=True)
        ]
        part = ring.product(dot, operands, cut, plan.narrowed)
        total = part if sent is None else ring.op("add", [sent, part], part.type)
    op = plan.collective
    if kind(op) == "all_reduce":
        total = ring.gather(total, cut.result, op.results[0].type)
    op.results[0].replace_all_uses_with(total)
    op.erase()


def _rewrite_gather(plan: _Plan, ring: Ring) -> None:
    """Step s multiplies the block of the core s behind, and puts the result in its place or adds it up."""
    op = plan.collective
    gathered = op.results[0]
    held: ir.Value = op.operands[0]
    totals: list[ir.Value | None] = [None] * len(plan.products)
    for step in range(ring.count):
        following = ring.send(held) if step < ring.count - 1 else None
        for number, (dot, cut) in enumerate(zip(plan.products, plan.cut, strict=True)):
            operands = []
            for value, dim in zip(dot.operands, (cut.left, cut.right), strict=True):
                if value == gathered:
                    operands.append(held)
                else:
                    operands.append(value if dim is None else ring.take(value, dim, -step))
            part = ring.product(dot, operands, cut, None)
            totals[number] = _taken_in(ring, totals[number], part, dot, cut, step)
        held = following
    for dot, total in zip(plan.products, totals, strict=True):
        dot.results[0].replace_all_uses_with(total)
        dot.erase()
    op.erase()


def _taken_in(
    ring: Ring, total: ir.Value | None, part: ir.Value, dot: ir.Operation, cut: Cut, step: int
) -> ir.Value:
    if cut.result is not None:
        into = ring.zeros(dot.results[0].type) if total is None else total
        return ring.put(into, part, cut.result, -step)
    return part if total is None else ring.op("add", [total, part], part.type)
