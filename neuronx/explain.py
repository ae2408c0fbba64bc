"""What the compiler decided and why, as text: plan, prices, collectives, what was given up."""

from collections import Counter
from collections.abc import Callable

from distributed.events import Timeline
from distributed.layout import Layout
from distributed.program import Program
from hlo_passes.ir import ir
from hlo_passes.notes import notes
from kernels.errors import CompileError
from kernels.work import Tensor
from neuronx.fastest import Tried

__all__ = ["explain"]

# What the plans with a name do.
_PLANS = {
    "weights": "every weight cut that can be",
    "weights_still": "the same, where nothing moves to or from a product",
    "still": "the fastest where nothing moves to or from a product",
    "moving": "the fastest where values may move",
    "whole": "nothing cut",
}
# How the notes of the pass ``order`` begin.
_ORDER = "order: "
# The entries of the module attribute ``neuron.plan``, which the pass ``shard`` leaves.
_PRICES = (
    ("step_s", "this plan"),
    ("replicated_s", "every argument whole on every core"),
)


def explain(
    module: ir.Module, program: Program, clock: Callable[[], Timeline], tried: Tried | None = None
) -> str:
    """The account of one compilation: shardings, prices, collectives, order and notes.

    Where the clock has no price for an op it says for which, and leaves out what takes times.

    Args:
      module: at any level from LOCAL on.
      program: what became of it.
      clock: times ``program``.
      tried: the plans that were clocked.
    """
    try:
        timeline, untimed = clock(), []
    except CompileError as error:
        timeline, untimed = None, str(error).splitlines()
    prices = "prices of plans (ops and collectives one after the other; exe.profile() overlaps them)"
    reordered = [note.removeprefix(_ORDER) for note in notes(module) if note.startswith(_ORDER)]
    said = [note for note in notes(module) if not note.startswith(_ORDER)]
    in_order = "program order" if untimed else "program order: no other saves 1 % of the time"
    sections = {
        "arguments": _arguments(program),
        "padding of uneven arguments": _padding(program, timeline),
        prices: _prices(module),
        "plans by the clock": _plans(tried, timeline.total_s) if tried and timeline else ["none was clocked"],
        "collectives": _collectives(timeline) if timeline else ["not timed"],
        "order of kernels and collectives": reordered or [in_order],
        "notes": [f"- {note}" for note in said] or ["nothing was given up"],
    }
    if untimed:
        sections = {"the clock cannot time this program": untimed} | sections
    return "\n".join(
        f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in sections.items()
    )


def _plans(tried: Tried, kept_s: float) -> list[str]:
    """The plans that were clocked beside the one kept, which takes ``kept_s`` seconds a step."""
    lines = [f"{seconds * 1e3:10.3f} ms  {name}: {_PLANS[name]}" for name, seconds in tried.named_s.items()]
    lines.append(f"{kept_s * 1e3:10.3f} ms  the plan that was kept")
    if min(tried.named_s.values()) < kept_s:
        return [*lines, 'objective="time" would keep a faster one']
    if tried.is_all:
        return [*lines, f"the fastest of all {tried.count} plans there are"]
    return [*lines, f"the fastest of {tried.count} plans that were tried; there are others"]


def _arguments(program: Program) -> list[str]:
    """One line a layout with how many arguments have it: models repeat theirs layer by layer."""
    counted = Counter(_layout(layout) for layout in program.input_layouts)
    return [f"{count:5d} x {text}" for text, count in counted.items()]


def _layout(layout: Layout) -> str:
    dims = ", ".join(
        f"{size} over {'+'.join(axes)}" if axes else str(size)
        for size, axes in zip(layout.global_shape, layout.dim_axes, strict=True)
    )
    held = ", ".join(map(str, layout.local_shape))
    return f"{layout.dtype}[{dims}]: " + ("whole" if layout.is_replicated else f"[{held}] a core")


def _padding(program: Program, timeline: Timeline | None) -> list[str]:
    """What the fullest core holds of each uneven argument beyond an even share, and the time to read it."""
    extra: Counter[Layout] = Counter()
    for layout in filter(lambda layout: layout.is_padded, program.input_layouts):
        held = Tensor(shape=layout.local_shape, dtype=layout.dtype).size_bytes
        whole = Tensor(shape=layout.global_shape, dtype=layout.dtype).size_bytes
        extra[layout] += held - whole // layout.mesh.size(
            tuple(axis for axes in layout.dim_axes for axis in axes)
        )
    if not extra:
        return ["none"]
    lines = [f"{size:12d} B a core  {_layout(layout)}" for layout, size in extra.most_common()]
    total = f"{extra.total()} B a core in all"
    if timeline is None:
        return [*lines, total]
    read_s = extra.total() / timeline.bandwidth_bytes_per_s
    return [*lines, f"{total}, {read_s * 1e3:.3f} ms to read them once"]


def _prices(module: ir.Module) -> list[str]:
    attributes = module.operation.attributes
    if "neuron.plan" not in attributes:
        return ["nothing was planned: the shardings are yours, or there is one core"]
    plan = attributes["neuron.plan"]
    return [f"{plan[key].value * 1e3:10.3f} ms  {text}" for key, text in _PRICES if key in plan]


def _collectives(timeline: Timeline) -> list[str]:
    found: Counter[tuple[str, str, float, float]] = Counter()
    for run in timeline.runs:
        if run.kind == "collective":
            seconds = round(run.engine_s["collective"], 12)  # alike but for rounding
            found[run.name, run.location, run.bytes, seconds] += run.iterations
    lines = [
        f"{count:5d} x {name:18s} {size_bytes:12.0f} B {seconds * 1e6:9.2f} us each  {location}"
        for (name, location, size_bytes, seconds), count in found.most_common()
    ]
    total_s = sum(seconds * count for (_, _, _, seconds), count in found.items())
    return [*lines, f"{total_s * 1e3:.3f} ms in all"] if lines else ["none"]
