"""The textual form of a pipeline, ``a,b{x=1,y=two}``, read into the options records of the passes."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from typing import Any

from kernels.errors import CompileError

__all__ = ["NoOptions", "parse_options", "split_spec", "unknown"]

_ELEMENT = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")
_BOOLS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a pass with nothing to choose."""


def split_spec(text: str) -> list[tuple[str, dict[str, str]]]:
    """``a,b{x=1}`` -> [("a", {}), ("b", {"x": "1"})]."""
    elements, position = [], 0
    while position < len(text) or not elements:
        match = _ELEMENT.match(text, position)
        if match is None:
            raise CompileError(
                f"cannot read the pass list at {text[position:]!r}",
                fix="write passes as name or name{option=value,...}, separated by commas",
            )
        elements.append((match[1], _settings(match[1], match[2] or "")))
        position = match.end()
    return elements


def _settings(name: str, text: str) -> dict[str, str]:
    settings = {}
    for setting in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = setting.partition("=")
        if not equals:
            raise CompileError(
                f"{name}: {setting!r} is not option=value", fix=f"write {name}{{{setting}=...}}"
            )
        settings[key.strip()] = value.strip()
    return settings


def parse_options(name: str, record: type, settings: dict[str, str]) -> Any:
    """The options record of pass ``name``; fields whose type has no textual form cannot be set here."""
    hints = typing.get_type_hints(record)
    readers = {field.name: hints[field.name] for field in dataclasses.fields(record)}
    values = {}
    for key, text in settings.items():
        if key not in readers:
            raise unknown(f"option of {name}", key, list(readers))
        values[key] = _value(f"{name}{{{key}}}", readers[key], text)
    return record(**values)


def _value(where: str, hint: Any, text: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(hint)}
        if text not in choices:
            raise unknown(f"value of {where}", text, list(choices))
        return choices[text]
    accepted = typing.get_args(hint) or (hint,)
    for type_ in accepted:
        value = _scalar(type_, text)
        if value is not None:
            return value
    names = " or ".join(type_.__name__ for type_ in accepted if type_ is not type(None))
    raise CompileError(f"{where}: expected {names}, got {text!r}", fix=f"give {where} a value of that type")


def _scalar(type_: type, text: str) -> Any:
    if type_ is bool:
        return _BOOLS.get(text.lower())
    if type_ in (int, float):
        try:
            return type_(text)
        except ValueError:
            return None
    return text if type_ is str else None


def unknown(what: str, got: str, known: Sequence[str]) -> CompileError:
    """The error for a name that does not exist: lists what does, nearest first."""
    near = difflib.get_close_matches(got, known, n=1)
    listed = ", ".join(known) if known else "none"
    return CompileError(
        f"unknown {what}: {got!r}; there is {listed}",
        fix=f"did you mean {near[0]!r}?" if near else "use one of those",
    )
