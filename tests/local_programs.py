"""LOCAL modules for tests: what one core runs, traced with JAX, its collectives put in afterwards.

A function here is written for one core. ``all_reduce(x)`` leaves a marker in the trace that becomes
``stablehlo.all_reduce`` over all ranks; shapes are those of one core.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distributed.layout import Layout
from hlo_passes import canonicalize
from hlo_passes.ir import ir, main, parse
from hlo_passes.local import argument_layouts, num_ranks
from kernels.dtypes import dtype as find_dtype

__all__ = [
    "all_reduce",
    "assemble",
    "local_module",
    "loops",
    "mlp_block",
    "opt_decode",
    "opt_prefill",
    "per_rank",
    "random_program",
]

_MARKER = re.compile(r"(%[\w#]+) = stablehlo\.optimization_barrier (%[\w#]+) : (tensor<([^>]*)>)(.*)")


def all_reduce(x: jax.Array) -> jax.Array:
    """The sum of ``x`` over all ranks, once the module is finished by ``local_module``."""
    return lax.optimization_barrier(x)


def local_module(
    function: Callable,
    arguments: Sequence[tuple[tuple[int, ...], str, int | None]],
    *,
    tp: int,
    donate: Sequence[int] = (),
) -> str:
    """Traces ``function`` into the text of a LOCAL module over ``tp`` ranks (mesh axis "tp").

    Args:
      arguments: per argument its local shape, NumPy dtype and the dim that is sharded, or None.
      donate: the arguments given up.

    Results count as replicated, except that a result in the place of a donated argument lies as it does.
    """
    avals = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in arguments]
    lowered = (
        jax.jit(function, donate_argnums=donate, keep_unused=True)
        .trace(*avals)
        .lower(lowering_platforms=("cpu",))
    )
    text = lowered.compiler_ir("stablehlo").operation.get_asm(enable_debug_info=True)
    module = parse(_insert_all_reduces(text, tp))
    canonicalize.run(module, canonicalize.Options())
    with module.context:
        _attach(module, arguments, tp)
    return module.operation.get_asm(enable_debug_info=True)


def _insert_all_reduces(text: str, tp: int) -> str:
    groups = f"dense<[{list(range(tp))}]> : tensor<1x{tp}xi64>"

    def replace(match: re.Match) -> str:
        result, operand, whole, inner, rest = match.groups()
        element = inner.rpartition("x")[2]
        return (
            f'{result} = "stablehlo.all_reduce"({operand}) <{{replica_groups = {groups}}}> ({{\n'
            f"^bb0(%left: tensor<{element}>, %right: tensor<{element}>):\n"
            f"  %sum = stablehlo.add %left, %right : tensor<{element}>\n"
            f"  stablehlo.return %sum : tensor<{element}>\n"
            f"}}) : ({whole}) -> {whole}{rest}"
        )

    return _MARKER.sub(replace, text)


def _attach(module: ir.Module, arguments: Sequence, tp: int) -> None:
    parsed = ir.Attribute.parse
    attributes = module.operation.attributes
    attributes["mhlo.num_replicas"] = parsed(f"{tp} : i32")
    attributes["mhlo.num_partitions"] = parsed("1 : i32")
    attributes["neuron.mesh"] = parsed(f'{{axes = [["tp", {tp} : i64]], device_ids = array<i64>}}')
    function = main(module)
    aliases: dict[int, dict[str, str]] = {}
    places = []
    if "arg_attrs" not in function.attributes:
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get({})] * len(arguments))
    for given, (shape, _, dim), own in zip(
        function.attributes["arg_attrs"], arguments, function.type.inputs, strict=True
    ):
        kept = {item.name: item.attr for item in given if not item.name.startswith("mhlo.")}
        layout = _layout(shape, str(ir.RankedTensorType(own).element_type), dim, tp)
        if "tf.aliasing_output" in kept:
            aliases[kept["tf.aliasing_output"].value] = layout
        places.append(ir.DictAttr.get(kept | {name: parsed(text) for name, text in layout.items()}))
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(places)
    results = []
    for number, own in enumerate(function.type.results):
        layout = aliases.get(number) or {"neuron.global_type": str(own)}
        results.append(ir.DictAttr.get({name: parsed(text) for name, text in layout.items()}))
    function.attributes["res_attrs"] = ir.ArrayAttr.get(results)


def _layout(shape: tuple[int, ...], element: str, dim: int | None, tp: int) -> dict[str, str]:
    whole = [size * tp if number == dim else size for number, size in enumerate(shape)]
    layout = {"neuron.global_type": f"tensor<{'x'.join(map(str, [*whole, element]))}>"}
    if dim is not None:
        axes = ", ".join('["tp"]' if number == dim else "[]" for number in range(len(shape)))
        layout["neuron.dim_axes"] = f"[{axes}]"
    return layout


def mlp_block(tp: int = 4) -> str:
    """A Megatron MLP: column-parallel, relu, row-parallel, all-reduce, bias and residual."""

    def block(x, w1, b1, w2, b2):
        hidden = jnp.maximum(x @ w1 + b1, 0.0)
        return x + (all_reduce(hidden @ w2) + b2)

    arguments = [
        ((4, 16), "f4", None),
        ((16, 8), "f4", 1),
        ((8,), "f4", 0),
        ((8, 16), "f4", 0),
        ((16,), "f4", None),
    ]
    return local_module(block, arguments, tp=tp)


def _layer_norm(x, scale, bias):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5) * scale + bias


def _softmax(scores):
    shifted = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return shifted / jnp.sum(shifted, axis=-1, keepdims=True)


def _heads(x, w, b, heads):
    batch, length, _ = x.shape
    return jnp.transpose(jnp.reshape(x @ w + b, (batch, length, heads, -1)), (0, 2, 1, 3))


_LAYER = 16


def _layer(x, p, heads, past, keep):
    """One pre-LN OPT layer; ``past(k, v) -> k, v, mask`` puts keys and values in the cache."""
    normed = _layer_norm(x, p[0], p[1])
    q, k, v = (_heads(normed, p[2 + 2 * i], p[3 + 2 * i], heads) for i in range(3))
    k, v, mask = past(k, v)
    keep += [k, v]
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", _softmax(scores + mask), v)
    mixed = jnp.reshape(jnp.transpose(mixed, (0, 2, 1, 3)), (*x.shape[:2], -1))
    x = x + (all_reduce(mixed @ p[8]) + p[9])
    normed = _layer_norm(x, p[10], p[11])
    hidden = jnp.maximum(normed @ p[12] + p[13], 0.0)
    return x + (all_reduce(hidden @ p[14]) + p[15])


def _layer_arguments(hidden: int, tp: int, dtype: str) -> list:
    one, column, row = (
        ((hidden,), dtype, None),
        ((hidden, hidden // tp), dtype, 1),
        ((hidden // tp, hidden), dtype, 0),
    )
    cut = ((hidden // tp,), dtype, 0)
    up, up_bias = ((hidden, 4 * hidden // tp), dtype, 1), ((4 * hidden // tp,), dtype, 0)
    down = ((4 * hidden // tp, hidden), dtype, 0)
    return [one, one, column, cut, column, cut, column, cut, row, one, one, one, up, up_bias, down, one]


def opt_prefill(
    *, layers: int, hidden: int = 32, heads: int = 4, length: int = 8, tp: int = 4, dtype: str = "f4"
) -> str:
    """Pre-LN OPT layers over a whole prompt, sharded by heads; no cache."""

    def run(x, *weights):
        rows, columns = (
            lax.broadcasted_iota("i4", (length, length), 0),
            lax.broadcasted_iota("i4", (length, length), 1),
        )
        mask = lax.select(
            columns <= rows, jnp.zeros((length, length), dtype), jnp.full((length, length), -1e9, dtype)
        )
        for number in range(layers):
            p = weights[number * _LAYER : (number + 1) * _LAYER]
            x = _layer(x, p, heads // tp, lambda k, v: (k, v, mask), [])
        return x

    arguments = [((1, length, hidden), dtype, None), *(_layer_arguments(hidden, tp, dtype) * layers)]
    return local_module(run, arguments, tp=tp)


def opt_decode(
    *, layers: int, hidden: int = 32, heads: int = 4, length: int = 8, tp: int = 4, dtype: str = "f4"
) -> str:
    """One token through pre-LN OPT layers with a donated KV cache sharded by heads."""

    def run(x, position, cache, *weights):
        mask = lax.select(
            lax.iota("i4", length) <= position, jnp.zeros((length,), dtype), jnp.full((length,), -1e9, dtype)
        )
        kept = []
        for number in range(layers):
            p = weights[number * _LAYER : (number + 1) * _LAYER]

            def past(k, v, number=number):
                where = (0, 0, position, 0)
                k = lax.dynamic_update_slice(cache[2 * number], k, where)
                return k, lax.dynamic_update_slice(cache[2 * number + 1], v, where), mask

            x = _layer(x, p, heads // tp, past, kept)
        return x, *kept

    def flat(x, position, *rest):
        return run(x, position, rest[: 2 * layers], *rest[2 * layers :])

    cache = ((1, heads // tp, length, hidden // heads), dtype, 1)
    arguments = [
        ((1, 1, hidden), dtype, None),
        ((), "i4", None),
        *([cache] * (2 * layers)),
        *(_layer_arguments(hidden, tp, dtype) * layers),
    ]
    return local_module(flat, arguments, tp=tp, donate=range(2, 2 + 2 * layers))


def per_rank(module_text: str, seed: int) -> list[list[np.ndarray]]:
    """Random inputs for every rank: equal where the argument is replicated."""
    module = parse(module_text)
    rng = np.random.default_rng(seed)
    ranks: list[list[np.ndarray]] = [[] for _ in range(num_ranks(module))]
    for layout in argument_layouts(module, main(module)):
        shared = _draw(rng, layout)
        for rank in ranks:
            rank.append(shared if layout.is_replicated else _draw(rng, layout))
    return ranks


def _draw(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    shape = layout.local_shape
    if layout.dtype == "i1":
        return np.asarray(rng.integers(0, 2, shape), bool)
    if layout.dtype.startswith("i"):
        return np.asarray(rng.integers(0, 4, shape), layout.dtype.replace("i", "int"))
    return np.asarray(rng.standard_normal(shape), np.dtype(find_dtype(layout.dtype).numpy))


def assemble(layout: Layout, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The global array whose block on each rank is ``blocks[rank]``."""
    whole = np.zeros(layout.global_shape, blocks[0].dtype)
    for rank, block in enumerate(blocks):
        whole[layout.block(rank)] = block
    return whole


def loops(tp: int = 4) -> str:
    """A scan over stacked weights with an all-reduce inside, a loop without one, branches with one."""

    def run(x, weights, cache, number):
        def body(carry, w):
            x, cache, step = carry
            x = jnp.tanh(x + all_reduce(x @ w))
            cache = lax.dynamic_update_slice(cache, (x[:1, :2] + w[0, 0])[None], (step, 0, 0))
            return (x, cache, step + 1), jnp.sum(x)

        (x, cache, _), sums = lax.scan(body, (x, cache, jnp.int32(0)), weights)
        x = lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) + 0.5, x)
        x = lax.cond(number > 2, lambda x: all_reduce(x * weights[0, :, 0]), lambda x: x - 1.0, x)
        x = lax.switch(number, [lambda x: x + 1.0, lambda x: all_reduce(x), lambda x: 2.0 * x], x)
        return x, cache, sums

    arguments = [((4, 8), "f4", None), ((3, 8, 8), "f4", 1), ((3, 1, 2), "f4", 2), ((), "i4", None)]
    return local_module(run, arguments, tp=tp, donate=[2])


_UNARY = (jnp.tanh, jnp.sin, lambda x: jnp.maximum(x, 0.1), lambda x: x.T, lambda x: x * 0.5)
_BINARY = (
    jnp.add,
    jnp.multiply,
    jnp.minimum,
    lambda x, y: jnp.tanh(x @ y),
    lambda x, y: jnp.where(x > y, x, y),
)
_ROWS = (
    lambda x: _softmax(x),
    lambda x: x - jnp.mean(x, -1, keepdims=True),
    lambda x: jnp.broadcast_to(jnp.sum(x, 0), x.shape),
    lambda x: jnp.concatenate([x[:2], -x[2:]]),
    lambda x: jnp.reshape(jnp.reshape(x, (2, 8)), (4, 4)),
    lambda x: lax.dynamic_update_slice(x, x[:1] * 2, (1, 0)),
    lambda x: x[jnp.array([3, 0, 0, 1])],
    lambda x: lax.sort(x),
)


def random_program(choices: Sequence[tuple[int, int, int]], *, tp: int = 2, outputs: int = 3) -> str:
    """A LOCAL module of 4x4 values over ``tp`` ranks, one op per choice (which op, which operands)."""

    def run(replicated, sharded, donated):
        values = [replicated, sharded, donated]
        table = [*_UNARY, *_BINARY, *_ROWS, all_reduce]
        for which, left, right in choices:
            op = table[which % len(table)]
            x, y = values[left % len(values)], values[right % len(values)]
            made = op(x, y) if op in _BINARY else op(x * 0.25 if op is all_reduce else x)
            values.append(made)
        return [all_reduce(value * 0.25) for value in values[-outputs:]]

    shape = (4, 4)
    return local_module(run, [(shape, "f4", None), (shape, "f4", 0), (shape, "f4", None)], tp=tp, donate=[2])
