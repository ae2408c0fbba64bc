"""README's Python example runs as printed; its tables name what exists."""

import re
from pathlib import Path

from neuronx.cli.main import VERBS
from neuronx.environment import VARIABLES

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code, "README.md", "exec"), session)
    printed = capsys.readouterr().out
    assert "stablehlo.all_reduce" in printed and "mark_step at README.md" in printed
    assert (tmp_path / "mlp.trace.json").stat().st_size > 0


def test_every_verb_and_variable_is_named():
    for verb in VERBS:
        assert f"`neuronx {verb.NAME}" in TEXT
    assert set(re.findall(r"`(NEURONX_\w+)`", TEXT)) == set(VARIABLES)
