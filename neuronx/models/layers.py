"""Layers the models share, in plain JAX, and makers of their parameters: shapes only, or random numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

__all__ = [
    "ACTIVATIONS",
    "Attend",
    "Cache",
    "Make",
    "attention",
    "convolution",
    "convolution_parameters",
    "encoder_attention",
    "group_norm",
    "head_logits",
    "layer_norm",
    "layer_parameters",
    "linear",
    "linear_parameters",
    "norm_parameters",
    "norms_first",
    "patches",
    "prompt_attention",
    "random",
    "rms_norm",
    "shapes",
    "split_heads",
    "step_attention",
    "tensor_parallel",
    "through_layers",
    "zeros",
]

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5))),
    "gelu_new": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
}
"""By the names of Hugging Face's configurations."""

Make = Callable[[tuple[int, ...], float], Any]
"""Makes one parameter of a shape around a mean."""

Cache = dict[str, jax.Array]
"""What a layer keeps: ``k`` and ``v``."""

Attend = Callable[[jax.Array, jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]
"""Mixes q, k and v with what the layer kept before; what it keeps now comes back as well."""


def shapes(dtype: Any, matrix_dtype: Any = None) -> Make:
    """Parameters as ``jax.ShapeDtypeStruct``s: no memory.

    Weights of two or more dims have ``matrix_dtype`` where it is given: what a compiler that casts the
    operands of products stores, while vectors keep the model's type.
    """

    def make(shape: tuple[int, ...], mean: float) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, matrix_dtype if matrix_dtype and len(shape) > 1 else dtype)

    return make


def zeros(tree: Any) -> Any:
    """Arrays of zeros for a tree of ``jax.ShapeDtypeStruct``s."""
    return jax.tree_util.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def random(dtype: Any, seed: int) -> Make:
    """Random parameters: normal, standard deviation 0.02, around their mean."""
    rng = np.random.default_rng(seed)

    def make(shape: tuple[int, ...], mean: float) -> jax.Array:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= 0.02
        values += mean
        return jnp.asarray(values.astype(dtype))

    return make


def linear_parameters(make: Make, width_in: int, width_out: int) -> dict[str, Any]:
    """What ``linear`` reads."""
    return {"w": make((width_in, width_out), 0.0), "b": make((width_out,), 0.0)}


def convolution_parameters(
    make: Make, features_in: int, features_out: int, size: int, groups: int = 1
) -> dict[str, Any]:
    """What ``convolution`` reads: a window of ``size`` by ``size``, in ``groups`` of features."""
    w = make((size, size, features_in // groups, features_out), 0.0)
    return {"w": w, "b": make((features_out,), 0.0)}


def convolution(weights: dict[str, Any], x: jax.Array, stride: int) -> jax.Array:
    """Of images [batch, height, width, features] padded with zeros, of odd windows; cast as by ``linear``.

    A window that reads fewer features than there are reads those of its own group.
    """
    kernel = weights["w"]
    y = jax.lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        (stride, stride),
        [((size - 1) // 2,) * 2 for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        preferred_element_type=x.dtype,
    )
    return y + weights["b"]


def norm_parameters(make: Make, width: int) -> dict[str, Any]:
    """What ``layer_norm`` reads."""
    return {"scale": make((width,), 1.0), "bias": make((width,), 0.0)}


def layer_parameters(make: Make, hidden: int, ffn: int, width: int | None = None) -> dict[str, Any]:
    """Of a layer of a BERT, ViT or Whisper: attention (of ``width``), two products, a norm for each half."""
    width = width or hidden
    projections = {name: linear_parameters(make, hidden, width) for name in ("q", "k", "v")}
    projections["o"] = linear_parameters(make, width, hidden)
    feed_forward = {
        "up": linear_parameters(make, hidden, ffn),
        "down": linear_parameters(make, ffn, hidden),
    }
    norms = {name: norm_parameters(make, hidden) for name in ("attention_norm", "ffn_norm")}
    return {**projections, **feed_forward, **norms}


def linear(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """``x @ w + b``, or without bias where there is none; x is cast to the type of w, the result back.

    With a ``scale`` for each column, w is small numbers of 8 bits: they are cast to the type of x instead.
    """
    if "scale" in weights:
        y = jnp.matmul(x, weights["w"].astype(x.dtype), preferred_element_type=jnp.float32)
        y = (y * weights["scale"]).astype(x.dtype)
    else:
        y = jnp.matmul(x.astype(weights["w"].dtype), weights["w"], preferred_element_type=x.dtype)
    return y + weights["b"] if "b" in weights else y


def head_logits(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """As ``linear``, but what comes of it stays f32."""
    w = weights["w"].astype(x.dtype) if "scale" in weights else weights["w"]
    y = jnp.matmul(x, w, preferred_element_type=jnp.float32)
    y = y * weights["scale"] if "scale" in weights else y
    return y + weights["b"] if "b" in weights else y


def layer_norm(weights: dict[str, Any], x: jax.Array, epsilon: float) -> jax.Array:
    """Over the last dim, in f32, back in the type of ``x``; without bias where there is none."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    normal = (wide - mean) * jax.lax.rsqrt(variance + epsilon) * weights["scale"]
    return (normal + weights["bias"] if "bias" in weights else normal).astype(x.dtype)


def group_norm(weights: dict[str, Any], x: jax.Array, epsilon: float, groups: int = 32) -> jax.Array:
    """Of images [batch, height, width, features], each of ``groups`` of features by itself; in f32."""
    wide = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
    mean = wide.mean(axis=(1, 2, 4), keepdims=True)
    variance = jnp.square(wide - mean).mean(axis=(1, 2, 4), keepdims=True)
    normal = ((wide - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return (normal * weights["scale"] + weights["bias"]).astype(x.dtype)


def rms_norm(scale: jax.Array, x: jax.Array, epsilon: float) -> jax.Array:
    """Over the last dim, in f32, back in the type of ``x``."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return normal.astype(x.dtype) * scale


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[batch, length, heads * d] to [batch, heads, length, d]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """[batch, heads, queries or keys, head_dim] each; ``visible`` broadcasts to bool [.., queries, keys].

    Where ``k`` has fewer heads than ``q``, equally many of q's share each, in one row of queries. A ``bias``
    is added to the scores [batch, heads, queries, keys], and no heads are shared. The softmax is f32; q is
    scaled already.
    """
    batch, heads, length, width = q.shape
    shared = heads // k.shape[1]
    if shared > 1:
        rows = q.reshape(batch, k.shape[1], shared * length, width)
        return attention(rows, k, v, jnp.tile(visible, (shared, 1))).reshape(q.shape)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def prompt_attention(length: int, bias: jax.Array | None = None) -> Attend:
    """Each position of a prompt sees itself and those before; they are written from the first one on."""
    causal = jnp.tril(jnp.ones((length, length), bool))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, old: Cache) -> tuple[jax.Array, Cache]:
        return attention(q, k, v, causal, bias), _updated(old, k, v, 0)

    return attend


def step_attention(max_len: int, position: jax.Array, bias: jax.Array | None = None) -> Attend:
    """Of one more position, whose keys and values are written at ``position`` of what was kept."""
    visible = (jnp.arange(max_len) <= position)[None, :]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, old: Cache) -> tuple[jax.Array, Cache]:
        kept = _updated(old, k, v, position)
        return attention(q, kept["k"], kept["v"], visible, bias), kept

    return attend


def _updated(old: Cache, k: jax.Array, v: jax.Array, position: jax.Array | int) -> Cache:
    start = (0, 0, position, 0)
    return {name: jax.lax.dynamic_update_slice(old[name], new, start) for name, new in (("k", k), ("v", v))}


def through_layers(
    layer: Callable[..., tuple[jax.Array, Any]], x: jax.Array, *of_layers: Sequence[Any]
) -> tuple[jax.Array, list[Any]]:
    """``x, kept = layer(x, *of_layer)`` over and over; the last ``x``, and what was kept of each layer.

    JAX traces and lowers ``layer`` once, where all layers take arrays of the same types.
    """
    once, kept = jax.jit(layer), []
    for of_layer in zip(*of_layers, strict=True):
        x, own = once(x, *of_layer)
        kept.append(own)
    return x, kept


def encoder_attention(
    layer: dict[str, Any], x: jax.Array, heads: int, visible: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """What the positions of ``x`` [batch, length, hidden] take from those ``visible``, projected back."""
    q, k, v = (split_heads(linear(layer[name], x), heads) for name in ("q", "k", "v"))
    mixed = attention(q * (1 / math.sqrt(q.shape[-1])), k, v, visible, bias)
    return linear(layer["o"], mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))


def norms_first(
    layers: Sequence[dict[str, Any]],
    x: jax.Array,
    *,
    heads: int,
    visible: jax.Array,
    activation: str,
    epsilon: float,
) -> jax.Array:
    """``x`` [batch, length, hidden] through encoder layers that normalise before each half."""

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        normal = layer_norm(weights["attention_norm"], x, epsilon)
        x = x + encoder_attention(weights, normal, heads, visible)
        normal = layer_norm(weights["ffn_norm"], x, epsilon)
        up = ACTIVATIONS[activation](linear(weights["up"], normal))
        return x + linear(weights["down"], up), None

    return through_layers(layer, x, layers)[0]


def patches(images: jax.Array, size: int) -> jax.Array:
    """[batch, patches, size * size * features] of images [batch, height, width, features]: a convolution
    whose windows do not overlap is a product."""
    across, features = images.shape[1] // size, images.shape[3]
    cut = images.reshape(-1, across, size, across, size, features).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, across**2, features * size**2)


# Which dim of a projection's weights is cut: what makes heads and features by columns, the rest by rows.
_COLUMNS, _ROWS = frozenset({"q", "k", "v", "gate", "up", "head"}), frozenset({"o", "down"})


def tensor_parallel(params: Any) -> Any:
    """The tree of ``params`` as PartitionSpecs over "tp": the classic plan, two all-reduces a layer.

    Queries, keys, values, gates and heads by columns, what follows them by rows, the rest on every core.
    A token table that is also the head (there is no other) is cut by tokens.
    """
    tied = "head" not in params

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if names == ["tokens"]:
            return PartitionSpec("tp") if tied else PartitionSpec()
        if not _COLUMNS.isdisjoint(names):
            return PartitionSpec(*[None] * (len(leaf.shape) - 1), "tp")
        return PartitionSpec("tp") if not _ROWS.isdisjoint(names) and len(leaf.shape) > 1 else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, params)
