"""How decoders tell positions apart: rotations of queries and keys, and slopes on their scores."""

import math

import jax
import jax.numpy as jnp

__all__ = ["Turn", "alibi", "rotate", "rotation", "stretched"]

Turn = tuple[jax.Array, jax.Array]
"""Cosine and sine of every position's angles, f32 [length, rotary / 2]."""

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
