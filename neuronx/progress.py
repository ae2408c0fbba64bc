"""What long work shows on a terminal: the step it is at."""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

__all__ = ["Progress"]

_QUIET_S = 2.0
_EVERY_S = 0.5
# A terminal has one such line: work within other work that shows its steps is silent.
_LINE = threading.Lock()


class Progress:
    """Writes one line to a terminal, over and over, once the work takes more than two seconds.

    Silent where ``stream`` (default: stderr) is no terminal. ``advance`` says that a step is done.
    ``doing`` is the work: "compiling", "planning".
    """

    def __init__(self, doing: str, steps: Sequence[str], stream: TextIO | None = None) -> None:
        self._doing, self._steps = doing, steps
        self._stream = sys.stderr if stream is None else stream
        self._done = 0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def advance(self) -> None:
        self._done += 1

    def __enter__(self) -> "Progress":
        if self._stream.isatty() and _LINE.acquire(blocking=False):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._finished.set()
        if self._thread.ident is not None:
            self._thread.join()
            _LINE.release()

    def _show(self) -> None:
        start, width, wait_s = time.monotonic(), 0, _QUIET_S
        while not self._finished.wait(wait_s):
            wait_s = _EVERY_S
            step = self._steps[min(self._done, len(self._steps) - 1)]
            elapsed_s = time.monotonic() - start
            line = (
                f"neuronx: {self._doing}, {elapsed_s:.1f} s, {step} ({self._done + 1} of {len(self._steps)})"
            )
            self._write("\r" + line.ljust(width))
            width = max(width, len(line))
        if width:
            self._write("\r" + " " * width + "\r")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
