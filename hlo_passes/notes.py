"""What passes tell the user: sentences in the module attribute ``neuron.notes``, in order."""

from collections import Counter
from collections.abc import Sequence

from hlo_passes.ir import ir

__all__ = ["add_notes", "notes"]

_NAME = "neuron.notes"


def notes(module: ir.Module) -> tuple[str, ...]:
    """The notes of all passes so far."""
    attributes = module.operation.attributes
    return tuple(text.value for text in attributes[_NAME]) if _NAME in attributes else ()


def add_notes(module: ir.Module, texts: Sequence[str]) -> None:
    """Appends ``texts``: equal ones once, with how often; what is there already is not said again."""
    if not texts:
        return
    counted = [f"{text} ({n} times)" if n > 1 else text for text, n in Counter(texts).items()]
    every = dict.fromkeys((*notes(module), *counted))
    with module.context:
        strings = [ir.StringAttr.get(text) for text in every]
        module.operation.attributes[_NAME] = ir.ArrayAttr.get(strings)
