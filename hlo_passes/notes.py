"""What passes tell the user: sentences in the module attribute ``neuron.notes``, in order."""

from collections.abc import Sequence

from hlo_passes.ir import ir

__all__ = ["add_notes", "notes"]

_NAME = "neuron.notes"


def notes(module: ir.Module) -> tuple[str, ...]:
    """The notes of all passes so far."""
    attributes = module.operation.attributes
    return tuple(text.value for text in attributes[_NAME]) if _NAME in attributes else ()


def add_notes(module: ir.Module, texts: Sequence[str]) -> None:
    """Appends ``texts``; what is there already is not said twice."""
    said = notes(module)
    if set(texts) <= set(said):
        return
    every = dict.fromkeys((*said, *texts))
    with module.context:
        strings = [ir.StringAttr.get(text) for text in every]
        module.operation.attributes[_NAME] = ir.ArrayAttr.get(strings)
