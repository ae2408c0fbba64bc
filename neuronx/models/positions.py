"""How positions are told apart: rotations of queries and keys, and slopes and biases on their scores."""

import math

import jax
import jax.numpy as jnp

__all__ = ["DISTANCES", "Turn", "alibi", "distance_bias", "rotate", "rotation", "skewed", "stretched"]

Turn = tuple[jax.Array, jax.Array]
"""Cosine and sine of every position's angles, f32 [length, rotary / 2]."""

# Beyond it all have one bias.
_FARTHEST = 128

DISTANCES = 32
"""Of T5's biases: one each for the near distances, shared by ever more of the far ones."""

# Llama 3.1's config.json: the positions it was first trained on, and how many turns over them make a wave
# slow (stretched whole) or fast (left alone).
_TRAINED, _SLOW_TURNS, _FAST_TURNS = 8192, 1.0, 4.0


def rotation(positions: jax.Array, rotary: int, *, base: float, factor: float = 1.0) -> Turn:
    """How far ``rotary`` numbers of a head are turned; slow waves are stretched by ``factor``."""
    exponent = jnp.arange(0, rotary, 2, dtype=jnp.float32) / rotary
    angles = positions.astype(jnp.float32)[:, None] * stretched(base**-exponent, factor)
    return jnp.cos(angles), jnp.sin(angles)


def stretched(frequency: jax.Array, factor: float) -> jax.Array:
    """Slow waves ``factor`` times slower, fast ones as they are, those between in proportion."""
    turns = frequency * (_TRAINED / (2 * math.pi))
    fast = jnp.clip((turns - _SLOW_TURNS) / (_FAST_TURNS - _SLOW_TURNS), 0.0, 1.0)
    return frequency * (fast + (1 - fast) / factor)


def rotate(x: jax.Array, turn: Turn, *, is_interleaved: bool = False) -> jax.Array:
    """``x`` [batch, heads, length, head_dim] with as many numbers of each head turned as ``turn`` has angles
    for two: neighbours together, or the two halves."""
    cos, sin = (part.astype(x.dtype) for part in turn)
    count = 2 * cos.shape[-1]
    if count < x.shape[-1]:
        turned = rotate(x[..., :count], turn, is_interleaved=is_interleaved)
        return jnp.concatenate([turned, x[..., count:]], axis=-1)
    if is_interleaved:
        first, second = x[..., ::2], x[..., 1::2]
    else:
        first, second = jnp.split(x, 2, axis=-1)
    both = first * cos - second * sin, second * cos + first * sin
    return jnp.stack(both, axis=-1).reshape(x.shape) if is_interleaved else jnp.concatenate(both, axis=-1)


def skewed(scores: jax.Array) -> jax.Array:
    """[batch, heads, queries, keys] of scores of each query for each distance, 2 * queries - 1 of them, the
    farthest behind first: each row starts one distance later than the one above."""
    batch, heads, length, _ = scores.shape
    # A row of one more, read as rows of one less.
    rows = jnp.pad(scores, [(0, 0), (0, 0), (0, 0), (1, 0)]).reshape(batch, heads, 2 * length, length)
    return rows[:, :, 1:].reshape(scores.shape)[..., :length]


def alibi(heads: int, extra_heads: int, keys: int) -> jax.Array:
    """ALiBi's f32 [heads + extra_heads, 1, keys]: a key's score grows with its position by its head's slope.

    Slopes fall evenly, on a logarithmic scale, over a power of two of heads; further heads get those halfway
    between, ``extra_heads`` none. Source: Press et al., Train Short, Test Long, and its code.
    """
    even = 2 ** int(math.log2(heads))
    powers = [8 * (head + 1) / even for head in range(even)]
    powers += [8 * (head + 0.5) / even for head in range(heads - even)]
    slopes = [2.0**-power for power in powers] + [0.0] * extra_heads
    return jnp.array(slopes, jnp.float32)[:, None, None] * jnp.arange(keys, dtype=jnp.float32)


def distance_bias(table: jax.Array, queries: jax.Array, keys: jax.Array, *, both_ways: bool) -> jax.Array:
    """f32 [heads, queries, keys] of ``table`` [distances, heads]; ``both_ways``: keys may come later, and
    half of the distances are theirs."""
    ahead = keys[None, :] - queries[:, None]
    count = DISTANCES // 2 if both_ways else DISTANCES
    first = jnp.where(ahead > 0, count, 0) if both_ways else 0
    far = jnp.abs(ahead) if both_ways else jnp.maximum(-ahead, 0)
    exact = count // 2
    ratio = jnp.log(jnp.maximum(far, 1) / exact) / math.log(_FARTHEST / exact)
    shared = jnp.minimum(exact + (ratio * (count - exact)).astype(jnp.int32), count - 1)
    chosen = first + jnp.where(far < exact, far, shared)
    return jnp.take(table, chosen, axis=0, mode="clip").astype(jnp.float32).transpose(2, 0, 1)
