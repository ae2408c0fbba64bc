"""Which ops of a program the kernels of the host compute, and why XLA computes the others, as text."""

from collections import Counter

from distributed.program import Program
from hlo_passes.host_calls import Decision
from hlo_passes.host_lowering import lower_text

__all__ = ["host_report"]


def host_report(program: Program) -> str:
    """One line for each kind of op in the program's distinct segments, with how many of it there are.

    This is about the machine that simulates: nothing of it is in the program or in predicted times.
    """
    counted = Counter(
        decision for text in program.segments.values() for decision in lower_text(text).decisions
    )
    lines = [f"{count:5d} x {decision.op}: {_outcome(decision)}" for decision, count in counted.most_common()]
    return "\n".join(lines or ["there are no products, no updates and no rows to reduce"])


def _outcome(decision: Decision) -> str:
    if decision.cost is None:
        return f"XLA, for {decision.reason}"
    cost = decision.cost
    kernel = decision.target.partition("/")[0]
    return f"{kernel}, {cost.moved_bytes / 1e6:.3g} MB and {cost.flops / 1e6:.3g} MFLOP each"
