"""Models that are one program: encoders, classifiers and the parts of what makes images."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models import (
    bert,
    clip,
    conformer,
    convnext,
    deberta,
    esm,
    mobilenet,
    perceiver,
    pixart,
    resnet,
    segmenter,
    swin,
    text_perceiver,
    unet,
    vae,
    vgg,
    vit,
    wav2vec2,
)

__all__ = ["WHOLE"]


def _sentences(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """Tokens, mask and types."""
    return [jax.ShapeDtypeStruct((batch, length), jnp.int32)] * 3


def _texts(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """Tokens and mask."""
    return _sentences(cfg, batch, length, dtype)[:2]


def _sounds(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """Samples."""
    return [jax.ShapeDtypeStruct((batch, length), dtype)]


def _images(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((batch, cfg.image, cfg.image, 3), dtype)]


def _images_and_sentences(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """As many sentences as images."""
    return [*_images(cfg, batch, length, dtype), jax.ShapeDtypeStruct((batch, length), jnp.int32)]


def _latents(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((batch, cfg.across, cfg.across, unet.LATENTS), dtype)]


def _noisy_latents(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """With the step, the sentence, and of SDXL the whole sentence's numbers and sizes."""
    latents = jax.ShapeDtypeStruct((batch, cfg.across, cfg.across, cfg.reads), dtype)
    sent = [latents, *_step_and_sentence(cfg, batch, dtype)]
    if not cfg.pooled:
        return sent
    sizes = jax.ShapeDtypeStruct((batch, cfg.sizes), jnp.int32)
    return [*sent, jax.ShapeDtypeStruct((batch, cfg.pooled), dtype), sizes]


def _masked_latents(cfg: Any, batch: int, length: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """With the step, the sentence and which of its tokens there are, and maybe sides and their ratio."""
    mask = jax.ShapeDtypeStruct((batch, cfg.tokens), jnp.int32)
    sent = [*_latents(cfg, batch, length, dtype), *_step_and_sentence(cfg, batch, dtype), mask]
    sides = [jax.ShapeDtypeStruct((batch, count), jnp.float32) for count in (2, 1)]
    return [*sent, *sides] if cfg.has_sides else sent


def _step_and_sentence(cfg: Any, batch: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    sentence = jax.ShapeDtypeStruct((batch, cfg.tokens, cfg.context), dtype)
    return [jax.ShapeDtypeStruct((batch,), jnp.int32), sentence]


# Models that are one program: its function, and what it takes from the host.
WHOLE: Mapping[ModuleType, tuple[Callable[..., Any], Callable[..., list[jax.ShapeDtypeStruct]]]] = {
    bert: (bert.encode, _sentences),
    deberta: (deberta.encode, _texts),
    esm: (esm.encode, _texts),
    text_perceiver: (text_perceiver.fill, _texts),
    wav2vec2: (wav2vec2.hear, _sounds),
    conformer: (conformer.hear, _sounds),
    resnet: (resnet.classify, _images),
    convnext: (convnext.classify, _images),
    mobilenet: (mobilenet.classify, _images),
    vgg: (vgg.classify, _images),
    vit: (vit.classify, _images),
    swin: (swin.classify, _images),
    perceiver: (perceiver.classify, _images),
    segmenter: (segmenter.segment, _images),
    clip: (clip.match, _images_and_sentences),
    unet: (unet.denoise, _noisy_latents),
    pixart: (pixart.denoise, _masked_latents),
    vae: (vae.decode_images, _latents),
}
