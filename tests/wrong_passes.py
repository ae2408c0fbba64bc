"""Passes made wrong on purpose: a pass of the pipeline that also replaces one op by another."""

from types import ModuleType

import pytest

from hlo_passes.ir import ir, walk

__all__ = ["make_wrong"]


def make_wrong(
    monkeypatch: pytest.MonkeyPatch, pass_: ModuleType, op_name: str, replacement: type, inside: str = ""
) -> None:
    """After ``pass_`` every op ``op_name`` of the module is a ``replacement`` of the same operands.

    With ``inside`` only those directly in a region of such an op.
    """
    right = pass_.run

    def run(module: ir.Module, options: object) -> object:
        result = right(module, options)
        walk(module.operation, replace)
        return result

    def replace(op: ir.Operation) -> None:
        if op.name == op_name and (not inside or op.parent.name == inside):
            with ir.InsertionPoint(op), op.location:
                new = replacement(*op.operands)
            op.results[0].replace_all_uses_with(new.result)
            op.erase()

    monkeypatch.setattr(pass_, "run", run)
