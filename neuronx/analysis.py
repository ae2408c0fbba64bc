"""``neuronx.analyze``: what the real compiler and runtime would reject or degrade, and what to write."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hlo_passes.canonicalize import flatten, lower
from hlo_passes.ir import ir, run_mlir_passes
from hlo_passes.neuron_rules import Finding, findings
from hlo_passes.reject import refusals
from kernels.errors import CompileError, OutOfDeviceMemoryError
from neuronx.api import compile
from neuronx.driver import CompileOptions, compile_module, copy_module
from neuronx.function import Function
from neuronx.ring_rules import MAX_INSTRUCTIONS, degree_findings, num_instructions, program_findings

__all__ = ["Analysis", "analyze", "analyze_module"]

_CODE = re.compile(r" *\(?(NCC_\w+)\)?:? *")
_WORST_FIRST = ("rejected", "degraded", "undocumented")


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """``findings`` with how often each was made, worst first.

    ``instructions`` is ``ring_rules.num_instructions``; None where the program does not compile here either.
    """

    findings: tuple[tuple[Finding, int], ...]
    instructions: int | None

    @property
    def rejected(self) -> tuple[Finding, ...]:
        return tuple(finding for finding, _ in self.findings if finding.severity == "rejected")

    def __str__(self) -> str:
        lines = []
        for found, count in self.findings:
            times = f" ({count} times)" if count > 1 else ""
            place = f" at {found.location}" if found.location else ""
            lines += [f"{found.severity} [{found.code}] {found.op}{place}{times}: {found.what}"]
            lines += [f"  instead: {found.fix}"]
        if self.instructions is not None:
            lines.append(f"about {self.instructions:,} instructions a core, {MAX_INSTRUCTIONS:,} are allowed")
        return "\n".join(
            [*lines, f"{len(self.rejected)} of {len(self.findings)} findings reject the program"]
        )


def analyze(fn: Callable[..., Any], *args: Any, tp_degree: int | None = None, **options: Any) -> Analysis:
    """What neuronx-cc and the Neuron runtime would make of ``fn(*args)``.

    Args:
      fn: a function, or what ``neuronx.compile`` returned (its options hold then).
      args: arrays, or ``jax.ShapeDtypeStruct``s.
      tp_degree, options: as for ``neuronx.compile``.
    """
    function = fn if isinstance(fn, Function) else compile(fn, tp_degree=tp_degree, **options)
    lowered = function.lower(*args)
    return analyze_module(lowered.exported.module, lowered.options)


def analyze_module(module: ir.Module, options: CompileOptions) -> Analysis:
    """What neuronx-cc and the Neuron runtime would make of a StableHLO module; it stays as it is."""
    work = copy_module(module)
    flatten(work)
    run_mlir_passes(work, "canonicalize,cse")
    found, program = [*degree_findings(options), *findings(work)], None
    lower(work)
    errors = list(refusals(work))
    if not errors:
        try:
            program = compile_module(module, options).program
        except CompileError as error:
            errors = [error]
    if program is not None:
        found += program_findings(program, options)
    counted = Counter([*found, *map(_refused, errors)])
    return Analysis(
        findings=tuple(sorted(counted.items(), key=lambda item: _WORST_FIRST.index(item[0].severity))),
        instructions=None if program is None else num_instructions(program),
    )


def _refused(error: CompileError) -> Finding:
    """What this compiler refuses as well, in its own words."""
    message = str(error).splitlines()[0].removeprefix(f"{error.op}: ")
    code = _CODE.search(message)
    memory = isinstance(error, OutOfDeviceMemoryError)
    return Finding(
        severity="rejected",
        code=code[1] if code else "NCC_EOOM002" if memory else "this compiler refuses it too",
        op=error.op,
        location=error.location,
        what=_CODE.sub("", message),
        fix=error.fix,
    )
