"""The tutorial of debugging runs as printed."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "debugging.md").read_text()


@pytest.mark.filterwarnings("ignore:tp_degree 3")
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block, "docs/debugging.md", "exec"), session)
    printed = capsys.readouterr().out
    for said in (
        "sub: the error up to it is",
        "autocast is the first to change the results",
        "3 of 3 findings reject the program",
        "3 programs, 3 calls",
        "depends on the padding of n",
    ):
        assert said in printed
