"""What a step spends its time on: XLA's own trace of it, summed up by kind of op."""

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

__all__ = ["shares"]

_STEPS = 5
_OP = re.compile(r"([a-z][\w-]*?)[.\d]*")
"""XLA's names of ops begin with a small letter and may end with a number; those of its own work do not."""


def shares(step: Callable[[], Any]) -> str:
    """Milliseconds and calls a step of each kind of op; ``custom-call`` are the kernels of the host.

    Summed over the threads they ran on, which may be several at a time. Tracing takes part of a microsecond
    for each op. The step was run before.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(_STEPS):
                jax.block_until_ready(step())
            step_s = (time.perf_counter() - start) / _STEPS
        [path] = Path(folder).rglob("*.xplane.pb")
        seconds, calls = _by_kind(ProfileData.from_file(str(path)))
    total_s = sum(seconds.values()) / _STEPS
    lines = [f"a step of {step_s * 1e3:.2f} ms while traced, ops {total_s * 1e3:.2f} ms"]
    for name, of_all in seconds.most_common(12):
        lines.append(f"  {name:<32} {of_all / _STEPS * 1e3:9.3f} ms {calls[name] / _STEPS:7.0f} calls")
    return "\n".join(lines)


def _by_kind(profile: ProfileData) -> tuple[Counter[str], Counter[str]]:
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in profile.planes:
        for event in (event for line in plane.lines for event in line.events):
            found = _OP.fullmatch(event.name)
            if found:
                seconds[found[1]] += event.duration_ns / 1e9
                calls[found[1]] += 1
    return seconds, calls
