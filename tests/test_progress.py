"""What a long compilation writes to a terminal, and that it is silent elsewhere."""

import io
import time

import pytest

from neuronx import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_S", 0.01)
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)


def work(stream):
    with progress.Progress("compiling", ["shard", "fuse"], stream) as shown:
        for _ in range(2):
            wait_for = time.monotonic() + 10
            step = "shard" if not shown._done else "fuse"
            while stream.isatty() and step not in stream.getvalue() and time.monotonic() < wait_for:
                time.sleep(0.01)
            shown.advance()


def test_a_terminal_sees_each_step_and_a_clean_line_at_the_end(impatient):
    stream = Terminal()
    work(stream)
    lines = stream.getvalue().split("\r")
    assert any("shard (1 of 2)" in line for line in lines) and any("fuse (2 of 2)" in line for line in lines)
    assert lines[-1] == "" and not lines[-2].strip()


def test_a_file_sees_nothing(impatient):
    stream = io.StringIO()
    work(stream)
    assert stream.getvalue() == ""


def test_a_short_compilation_shows_nothing():
    stream = Terminal()
    with progress.Progress("compiling", ["shard"], stream) as shown:
        shown.advance()
    assert stream.getvalue() == ""


def test_work_within_work_leaves_the_line_to_it(impatient):
    outer, inner = Terminal(), Terminal()
    with progress.Progress("planning", ["one"], outer):
        with progress.Progress("compiling", ["shard"], inner):
            wait_for = time.monotonic() + 10
            while "one" not in outer.getvalue() and time.monotonic() < wait_for:
                time.sleep(0.01)
        assert "planning" in outer.getvalue() and inner.getvalue() == ""
    work(inner)
    assert "shard (1 of 2)" in inner.getvalue()
