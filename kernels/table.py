"""All kinds of fused kernels in one table: which runs of ops each may take (costs: ``kernels.cost``)."""

from collections.abc import Callable, Mapping, Sequence

from kernels import (
    data_movement,
    elementwise,
    gather_scatter,
    matmul,
    normalization,
    reduction,
    single,
    softmax,
)

__all__ = ["KERNELS", "classify"]

# Each takes StableHLO mnemonics in topological order and tells whether it may fuse them. Most specific first:
# the first that is legal for a run of ops names its kernel.
KERNELS: Mapping[str, Callable[[Sequence[str]], bool]] = {
    "matmul": matmul.legal,  # one product with casts before and bias, activation, residual after it
    "convolution": matmul.legal_convolution,  # one, as its implicit product, with the same epilogues
    "softmax": softmax.legal,  # maximum, exponential, sum and division of rows held in SBUF
    "normalization": normalization.legal,  # layer, RMS or batch normalisation
    "gather_scatter": gather_scatter.legal,  # one indexed read or write
    "reduce": reduction.legal,  # reductions and windows with their elementwise producers and consumers
    "elementwise": elementwise.legal,  # a chain of elementwise ops that touches HBM only at its ends
    "data_movement": data_movement.legal,  # moves, slices, pads and transposes without arithmetic
    "control": single.legal_control,  # one while, case, sort, FFT, factorisation or generator
    "single": single.legal,  # any one op that no other kernel takes
}


def classify(kinds: Sequence[str]) -> str | None:
    """The first kernel that may fuse these ops, or None."""
    return next((name for name, legal in KERNELS.items() if legal(kinds)), None)
