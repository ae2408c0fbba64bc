"""Third-party models and this project's OPT: the ring's numbers are those of jax.jit, at several degrees."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import neuronx
from neuronx.models import opt
from neuronx.models.generation import Generator

NEEDED = "needs the models extra: pip install 'neuronx-hlo[models]'"
transformers = pytest.importorskip("transformers", reason=NEEDED)
pytest.importorskip("flax", reason=NEEDED)

import third_party  # noqa: E402 - it needs what is checked for above

_TWO = pytest.param(2, marks=pytest.mark.slow)
DEGREES = [1, _TWO, 3]

# Degrees 3 and 6 are legal in the simulator, which says that the vendor's runtime may refuse them.
pytestmark = pytest.mark.filterwarnings("ignore:tp_degree [36] runs here:UserWarning")

_HALF_ULP = 2.0**-24

OPTS = {
    "norm first": opt.OPTConfig(
        name="tiny", hidden=48, heads=6, layers=2, ffn=96, embed=48, vocab=96, positions=32
    ),
    "norm last, projected": opt.OPTConfig(
        name="tiny", hidden=48, heads=6, layers=2, ffn=96, embed=24, vocab=96, positions=32, norm_first=False
    ),
}


def assert_same(got, want, terms, depth):
    """Equal but for float32's roundings.

    A sum of ``terms`` rounded products that is added up in another order moves by about half an ulp times
    sqrt(terms), as independent roundings do; ``depth`` such sums in a row add up in the same way. That is
    relative to what is summed, so to the largest element. A relative 1e-5 of each element stands beside it.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    atol = _HALF_ULP * np.sqrt(terms * depth) * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol)


def assert_runs_as_jitted(model, **options):
    got = neuronx.compile(model.fn, **options)(model.params, model.inputs)
    want = jax.jit(model.fn)(model.params, model.inputs)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_same(ours, theirs, model.terms, model.depth)


def assert_same_gradients(model, **options):
    """The gradient of a loss over all results; each weight's is measured against the largest of all, for
    that of a key's bias is zero but for roundings (the softmax does not see it)."""

    def loss(params, inputs):
        results = jax.tree.leaves(model.fn(params, inputs))
        # Weighted, for the norms leave the plain mean of squares the same whatever the weights are.
        return sum(jnp.mean(jnp.square(x) * jnp.arange(x.shape[-1])) / x.shape[-1] for x in results)

    got = jax.tree.leaves(neuronx.compile(jax.grad(loss), **options)(model.params, model.inputs))
    want = jax.tree.leaves(jax.jit(jax.grad(loss))(model.params, model.inputs))
    assert len(got) == len(want)
    joined = [np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in (got, want)]
    # The way back has as many sums as the way there; a weight's own runs over all tokens as well.
    assert_same(*joined, max(model.terms, model.inputs.size), 2 * model.depth)


@pytest.mark.parametrize("tp_degree", DEGREES)
@pytest.mark.parametrize("name", third_party.MODELS)
def test_a_third_party_model_runs_as_jitted(name, tp_degree, rng):
    assert_runs_as_jitted(third_party.MODELS[name](rng), tp_degree=tp_degree)


@pytest.mark.parametrize("tp_degree", [_TWO, 3])
def test_a_gradient_of_bert_is_that_of_jit(tp_degree, rng):
    model = third_party.MODELS["bert"](rng)
    assert_same_gradients(model, tp_degree=tp_degree)


# The usual annotation of a layer by hand: columns of what opens a block, rows of what closes it.
COLUMNS = {"query", "key", "value", "intermediate"}
ROWS = {"output"}


def test_data_and_tensor_parallel_shardings_of_the_users_own(rng):
    """Gradients of BERT on 2 x 3 cores: sentences over one axis, weights over the other."""
    model = third_party.MODELS["bert"](rng)
    mesh = AbstractMesh((2, 3), ("data", "model"))

    def sharding(path, leaf):
        names = {key.key for key in path}
        if names & ROWS and leaf.ndim == 2:
            return NamedSharding(mesh, PartitionSpec("model", None))
        if names & COLUMNS:
            return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model"))
        return NamedSharding(mesh, PartitionSpec())

    weights = jax.tree_util.tree_map_with_path(sharding, model.params)
    asked = (weights, NamedSharding(mesh, PartitionSpec("data", None)))
    assert_same_gradients(model, in_shardings=asked, host_kernels=False)


@pytest.mark.slow
@pytest.mark.parametrize("tp_degree", DEGREES)
def test_a_full_resnet50_runs_as_jitted(tp_degree, rng):
    assert_runs_as_jitted(third_party.resnet50(rng), tp_degree=tp_degree)


# Two a layer, after the attention and after the feed-forward. OPT's token table is its output matrix too
# and is sharded by words: the look-up adds up what the cores found. BERT has no output matrix, so its table
# stays whole, and its pooler reads one token of a result every core has.
@pytest.mark.parametrize("tp_degree", [2, 3])
@pytest.mark.parametrize(("name", "all_reduces"), [("opt", 2 * 2 + 1), ("bert", 2 * 2)])
def test_two_all_reduces_a_layer(name, all_reduces, tp_degree, rng):
    model = third_party.MODELS[name](rng)
    compiled = neuronx.compile(model.fn, tp_degree=tp_degree).lower(model.params, model.inputs).compile()
    found = re.findall(r"stablehlo\.(all_\w+|reduce_scatter|collective_\w+)", compiled.as_text(level="local"))
    assert found == ["all_reduce"] * all_reduces


@pytest.mark.parametrize("tp_degree", DEGREES)
@pytest.mark.parametrize("kind", OPTS)
def test_generation_has_the_logits_of_flax_opt(kind, tp_degree, rng):
    cfg, prompt_len, new_tokens = OPTS[kind], 5, 4
    params = third_party.random_opt(cfg, rng)
    prompt = rng.integers(3, cfg.vocab, (2, prompt_len)).astype(np.int32)
    generator = Generator.build(
        cfg, dtype="f32", batch=2, prompt_len=prompt_len, new_tokens=new_tokens, tp_degree=tp_degree
    )
    got = generator.run(params, prompt)
    # Theirs reads prompt and answer at once, without a cache.
    model, theirs = third_party.flax_opt(cfg, params)
    read = np.concatenate([prompt, got.tokens[:, :-1]], axis=1)
    want = np.asarray(jax.jit(lambda p, ids: model(ids, params=p).logits)(theirs, read))
    for step, logits in enumerate(got.logits):
        assert_same(logits, want[:, prompt_len - 1 + step], cfg.ffn, third_party.sums_of(cfg.layers))
    np.testing.assert_array_equal(got.tokens, want[:, prompt_len - 1 :].argmax(axis=-1))


@pytest.mark.parametrize("tp_degree", DEGREES)
def test_the_cache_of_flax_opt_runs_as_jitted(tp_degree, rng):
    cfg = OPTS["norm first"]
    model, params = third_party.flax_opt(cfg, third_party.random_opt(cfg, rng))
    ids = rng.integers(3, cfg.vocab, (2, 6)).astype(np.int32)
    mask = jnp.ones((2, 8), jnp.int32)

    def step(params, cache, ids, positions):
        result = model(ids, params=params, past_key_values=cache, attention_mask=mask, position_ids=positions)
        return result.logits, result.past_key_values

    on_ring, jitted = neuronx.compile(step, tp_degree=tp_degree), jax.jit(step)
    # Its shapes only: FlaxOPT starts with zeros, but takes seconds to run the model for them.
    shapes = jax.eval_shape(lambda: model.init_cache(2, 8))
    ours = theirs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        got, ours = on_ring(params, ours, ids[:, start:stop], positions)
        want, theirs = jitted(params, theirs, ids[:, start:stop], positions)
        assert_same(got, want, cfg.ffn, third_party.sums_of(cfg.layers))
