"""The tutorial of lazy arrays runs as printed; recording costs no more than it says."""

import re
from pathlib import Path

import neuronx
from benchmarks import recording

TEXT = (Path(__file__).parent.parent / "docs" / "lazy.md").read_text()


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    neuronx.lazy.clear_graphs()
    session: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "docs/lazy.md", "exec"), session)
    printed = capsys.readouterr().out
    assert "max_graphs is 1" in printed and "this would run a graph here" in printed


def test_the_benchmark_of_recording_prints_a_row_a_program(capsys):
    recording.main(["--repeats", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(recording.PROGRAMS)
