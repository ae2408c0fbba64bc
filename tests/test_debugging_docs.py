"""The tutorial of debugging and the README's loop run as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import neuronx

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "debugging.md").read_text()


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


def test_the_loop_of_the_readme_runs(capsys):
    section = (ROOT / "README.md").read_text().split("## The developer's loop")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    neuronx.lazy.reset()
    exec(compile(code, "README.md", "exec"), {"neuronx": neuronx, "jax": jax, "jnp": jnp})
    assert "3 executions, " in capsys.readouterr().out
