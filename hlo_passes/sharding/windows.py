"""Which rows of its operand one row of a result reads, per dim, for ops that move windows over a tensor."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from hlo_passes.ir import ir

__all__ = [
    "WINDOWS", "Window", "WindowOp", "clear_padding", "convolution_dims", "convolution_roles",
    "reduce_window_windows",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Window:
    """Result row o of ``result_dim`` reads rows ``[start + o * stride, start + o * stride + extent)``.

    They are rows of ``operand_dim`` after ``dilation - 1`` rows of filling went between any two of it.
    Where ``is_reversed``, rows are counted from the end.
    """

    operand_dim: int
    result_dim: int
    start: int = 0
    stride: int = 1
    extent: int = 1
    dilation: int = 1
    is_reversed: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether row o reads row o, as far as there are rows."""
        return self == Window(operand_dim=self.operand_dim, result_dim=self.result_dim)


@dataclass(frozen=True, kw_only=True)
class WindowOp:
    """``windows`` of an op; ``localize(op, window, count)`` makes its attributes those of one core.

    ``fill`` numbers the first operand that fills rows outside (one per windowed operand follows),
    None is zero; ``data`` counts the windowed operands.
    """

    windows: Callable[[ir.Operation], list[Window]]
    localize: Callable[[ir.Operation, Window, int], None]
    data: Callable[[ir.Operation], int] = lambda op: 1
    fill: Callable[[ir.Operation], int | None] = lambda op: None


def _numbers(op: ir.Operation, name: str, default: int) -> list[int]:
    if name in op.attributes:
        return list(ir.DenseI64ArrayAttr(op.attributes[name]))
    rank = convolution_dims(op)[0] if op.name == "stablehlo.convolution" else list(range(_rank(op)))
    return [default] * len(rank)


def _rank(op: ir.Operation) -> int:
    return ir.RankedTensorType(op.operands[0].type).rank


def _set(op: ir.Operation, name: str, dim: int, number: int, default: int) -> None:
    numbers = _numbers(op, name, default)
    numbers[dim] = number
    op.attributes[name] = ir.DenseI64ArrayAttr.get(numbers)


def _padding(op: ir.Operation, count: int) -> list[list[int]]:
    if "padding" not in op.attributes:
        return [[0, 0] for _ in range(count)]
    attr = ir.DenseIntElementsAttr(op.attributes["padding"])
    flat = [attr[0]] * (2 * count) if attr.is_splat else list(attr)
    return [flat[i : i + 2] for i in range(0, 2 * count, 2)]


def clear_padding(op: ir.Operation, dim: int, count: int) -> None:
    """Sets the padding of one of the ``count`` dims of an op's windows to none."""
    padding = _padding(op, count)
    padding[dim] = [0, 0]
    text = ", ".join(f"[{low}, {high}]" for low, high in padding)
    op.attributes["padding"] = ir.Attribute.parse(f"dense<[{text}]> : tensor<{count}x2xi64>")


def _slice_windows(op: ir.Operation) -> list[Window]:
    starts, strides = _numbers(op, "start_indices", 0), _numbers(op, "strides", 1)
    whole, shape = op.operands[0].type.shape, op.results[0].type.shape
    return [
        Window(operand_dim=d, result_dim=d) if shape[d] == whole[d]
        else Window(operand_dim=d, result_dim=d, start=starts[d], stride=strides[d])
        for d in range(len(shape))
    ]  # fmt: skip


def _slice_localize(op: ir.Operation, window: Window, count: int) -> None:
    _set(op, "start_indices", window.result_dim, 0, 0)
    _set(op, "limit_indices", window.result_dim, count, 0)


def _pad_windows(op: ir.Operation) -> list[Window]:
    low, inner = _numbers(op, "edge_padding_low", 0), _numbers(op, "interior_padding", 0)
    whole, shape = op.operands[0].type.shape, op.results[0].type.shape
    return [
        Window(operand_dim=d, result_dim=d, start=-low[d], dilation=inner[d] + 1)
        if shape[d] != whole[d] or low[d] or inner[d] else Window(operand_dim=d, result_dim=d)
        for d in range(len(shape))
    ]  # fmt: skip


def _pad_localize(op: ir.Operation, window: Window, count: int) -> None:
    for name in ("edge_padding_low", "edge_padding_high", "interior_padding"):
        _set(op, name, window.result_dim, 0, 0)


def _reverse_windows(op: ir.Operation) -> list[Window]:
    dims = list(ir.DenseI64ArrayAttr(op.attributes["dimensions"]))
    return [Window(operand_dim=d, result_dim=d, is_reversed=d in dims) for d in range(_rank(op))]


def _keep(op: ir.Operation, window: Window, count: int) -> None:
    """Nothing in the op's attributes says a size."""


def reduce_window_windows(op: ir.Operation) -> list[Window]:
    """The windows of a reduce_window or select_and_scatter."""
    sizes, strides = _numbers(op, "window_dimensions", 1), _numbers(op, "window_strides", 1)
    base, dilations = _numbers(op, "base_dilations", 1), _numbers(op, "window_dilations", 1)
    padding = _padding(op, len(sizes))
    return [
        Window(
            operand_dim=d, result_dim=d, start=-padding[d][0], stride=strides[d],
            extent=(sizes[d] - 1) * dilations[d] + 1, dilation=base[d],
        )
        for d in range(len(sizes))
    ]  # fmt: skip


def _reduce_window_localize(op: ir.Operation, window: Window, count: int) -> None:
    clear_padding(op, window.result_dim, _rank(op))
    _set(op, "base_dilations", window.result_dim, 1, 1)


def convolution_roles(op: ir.Operation) -> list[list[str]]:
    """What each dim of input, kernel and result is: b, f, i, o, or the number of a spatial one."""
    # #stablehlo.conv<[b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1]>
    layouts = re.findall(r"\[([^]]*)\]", str(op.attributes["dimension_numbers"]))
    return [layout.split(", ") for layout in layouts]


def convolution_dims(op: ir.Operation) -> list[list[int]]:
    """Spatial dims of input, kernel and result, in the order of the window's attributes."""
    roles = convolution_roles(op)
    return [[row.index(str(i)) for i in range(sum(r.isdigit() for r in row))] for row in roles]


def _convolution_windows(op: ir.Operation) -> list[Window]:
    inputs, kernels, results = convolution_dims(op)
    strides, base = _numbers(op, "window_strides", 1), _numbers(op, "lhs_dilation", 1)
    dilations, padding = _numbers(op, "rhs_dilation", 1), _padding(op, len(inputs))
    sizes = [op.operands[1].type.shape[d] for d in kernels]
    return [
        Window(
            operand_dim=inputs[i], result_dim=results[i], start=-padding[i][0], stride=strides[i],
            extent=(sizes[i] - 1) * dilations[i] + 1, dilation=base[i],
        )
        for i in range(len(inputs))
    ]  # fmt: skip


def _convolution_localize(op: ir.Operation, window: Window, count: int) -> None:
    inputs, _, results = convolution_dims(op)
    clear_padding(op, results.index(window.result_dim), len(inputs))
    _set(op, "lhs_dilation", results.index(window.result_dim), 1, 1)


WINDOWS = {
    "stablehlo.slice": WindowOp(windows=_slice_windows, localize=_slice_localize),
    "stablehlo.pad": WindowOp(windows=_pad_windows, localize=_pad_localize, fill=lambda op: 1),
    "stablehlo.reverse": WindowOp(windows=_reverse_windows, localize=_keep),
    "stablehlo.reduce_window": WindowOp(
        windows=reduce_window_windows, localize=_reduce_window_localize,
        data=lambda op: len(op.results), fill=lambda op: len(op.results),
    ),
    "stablehlo.convolution": WindowOp(windows=_convolution_windows, localize=_convolution_localize),
}  # fmt: skip
