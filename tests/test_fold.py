"""Folding of equal layers: the program is the one that all layers would have made, or nothing is folded."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import neuronx
from distributed.program_text import program_text
from distributed.timeline import time_program
from hlo_passes import fold, unfold
from hlo_passes.folded import folded
from hlo_passes.ir import main, parse
from hlo_passes.pipeline import folding, run_pipeline
from kernels.errors import CompileError, OutOfDeviceMemoryError
from neuronx.driver import CompileOptions, WholeLevels, compile_module, copy_module, pipeline_for
from neuronx.models import bert, llama, opt
from neuronx.models.layers import tensor_parallel

pytestmark = pytest.mark.filterwarnings("ignore:tp_degree [3579] runs here:UserWarning")

LAYERS = 8
INSTANCE = "inf2.48xlarge"
Shape = jax.ShapeDtypeStruct


def shape(*sizes, dtype=jnp.float32):
    return Shape(sizes, dtype)


def _decoder(model, name, donate):
    cfg = dataclasses.replace(model.config(name), layers=LAYERS)
    arguments = (
        model.parameter_shapes(cfg, jnp.bfloat16),
        model.cache_shapes(cfg, 1, 64, jnp.bfloat16),
        shape(1, dtype=jnp.int32),
        shape(dtype=jnp.int32),
    )
    return functools.partial(model.decode, cfg), arguments, {"donate_argnums": 1} if donate else {}


def _prefill(model, name, batch=1, length=32):
    cfg = dataclasses.replace(model.config(name), layers=LAYERS)
    params = model.parameter_shapes(cfg, jnp.bfloat16)
    cache = model.cache_shapes(cfg, batch, 2 * length, jnp.bfloat16)
    return functools.partial(model.prefill, cfg), (params, cache, shape(batch, length, dtype=jnp.int32)), {}


def _encoder():
    cfg = dataclasses.replace(bert.config("bert-base-uncased"), layers=LAYERS)
    tokens = [shape(2, 32, dtype=jnp.int32)] * 3
    return functools.partial(bert.encode, cfg), (bert.parameter_shapes(cfg, jnp.float32), *tokens), {}


def mlp(weights, x):
    for up, down in weights:
        x = x + jnp.tanh(x @ up) @ down
    return x


def _mlp(sharding=lambda *spec: None):
    up = Shape((64, 256), jnp.float32, sharding=sharding(None, "tp"))
    down = Shape((256, 64), jnp.float32, sharding=sharding("tp", None))
    return mlp, ([(up, down)] * LAYERS, shape(8, 64)), {}


def _annotated_mlp():
    mesh = AbstractMesh((2,), ("tp",))
    return _mlp(lambda *spec: NamedSharding(mesh, P(*spec)))


def _annotated_prefill(model=opt, name="opt-125m", **sizes):
    """Its mask is a constant, of which Shardy gives each layer its own."""
    fn, arguments, _ = _prefill(model, name, **sizes)
    heads = P(None, "tp")
    given = {"in_shardings": (tensor_parallel(arguments[0]), heads, P())}
    return fn, arguments, given | {"out_shardings": (P(), P(), heads), "donate_argnums": 1}


def _flax_bert():
    """Its layers are not jitted functions, and each slices its row of a mask of ones."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=LAYERS, num_attention_heads=8, intermediate_size=512
    )
    model = transformers.FlaxBertModel(config, _do_init=False)
    params = jax.eval_shape(lambda key: model.init_weights(key, (1, 1)), jax.random.key(0))

    def encode(params, tokens):
        return model(tokens, params=params, train=False).last_hidden_state

    return encode, (params, shape(2, 32, dtype=jnp.int32)), {}


def _masked():
    def fn(weights, x):
        mask = jnp.ones((LAYERS, 64)).astype(jnp.int32)
        for number, (up, down) in enumerate(weights):
            x = x + jnp.tanh(x @ up) @ down * mask[number]
        return x

    return fn, _mlp()[1], {}


MODELS = {
    "opt decode": functools.partial(_decoder, opt, "opt-125m", True),
    "opt decode, cache copied": functools.partial(_decoder, opt, "opt-125m", False),
    "opt decode, norm last": functools.partial(_decoder, opt, "opt-350m", True),
    "opt prefill": functools.partial(_prefill, opt, "opt-125m"),
    "llama decode": functools.partial(_decoder, llama, "llama-3-8b", True),
    "llama prefill": functools.partial(_prefill, llama, "llama-3-8b"),
    "bert": _encoder,
    "flax bert": _flax_bert,
    "masked mlp": _masked,
    "mlp": _mlp,
    "annotated mlp": _annotated_mlp,
    "annotated prefill": _annotated_prefill,
}
EVERYWHERE = [(name, tp) for name in MODELS for tp in ((2,) if "mlp" in name else (1, 3, 24))]
QUICK = [
    ("opt decode", 24),
    ("opt prefill", 3),
    ("masked mlp", 2),
    ("annotated mlp", 2),
    ("annotated prefill", 2),
]


def lowered(fn, arguments, tp, **options):
    return neuronx.compile(fn, tp_degree=tp, **options).lower(*arguments)


def both(module, tp):
    """The program by way of folding, which must have taken place, and that of all passes on all layers."""
    options = CompileOptions(tp_degree=tp)
    artifacts = compile_module(module, options)
    assert isinstance(artifacts.levels, WholeLevels)
    return artifacts, run_pipeline(copy_module(module), pipeline_for(options, artifacts.plan))


def check(module, tp):
    artifacts, whole = both(module, tp)
    assert program_text(artifacts.program) == program_text(whole)
    assert artifacts.program == whole
    times = [time_program(program, INSTANCE).total_s for program in (artifacts.program, whole)]
    assert times[0] == times[1]
    return artifacts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tp"), EVERYWHERE)
def test_program_is_that_of_all_layers(name, tp):
    fn, arguments, options = MODELS[name]()
    check(lowered(fn, arguments, tp, **options).exported.module, tp)


@pytest.mark.parametrize(("name", "tp"), QUICK)
def test_program_is_that_of_all_layers_quick(name, tp):
    fn, arguments, options = MODELS[name]()
    check(lowered(fn, arguments, tp, **options).exported.module, tp)


def test_layers_that_send_parts_of_products_round_the_ring_are_folded():
    """Each reads where its blocks begin, of which there is one set."""
    fn, arguments, options = _annotated_prefill(llama, "llama-2-7b", batch=8, length=128)
    artifacts = check(lowered(fn, arguments, 2, **options).exported.module, 2)
    assert program_text(artifacts.program).count("collective_permute") == LAYERS


def _plain(module):
    """Text without names of results, prices and notes, which count ops or stay behind with their layer."""
    text = re.sub(r'jax.result_info = "[^"]*"(, )?', "", str(module))
    return re.sub(r"neuron\.(notes|plan) = (\[[^\]]*\]|\{[^}]*\}),? ?", "", text)


def test_fused_modules_are_the_same_text():
    fn, arguments, options = MODELS["opt decode"]()
    module = lowered(fn, arguments, 4, **options).exported.module
    stages = pipeline_for(CompileOptions(tp_degree=4))
    upto = [stage.name for stage in stages].index("fuse") + 1
    texts = []
    for passes in (stages[:upto], folding(stages)[: upto + 2]):
        copy = copy_module(module)
        run_pipeline(copy, passes)
        assert folded(copy) is None
        texts.append(_plain(copy))
    assert texts[0] == texts[1]


def test_folded_module_is_that_of_four_layers():
    fn, arguments, _ = _mlp()
    module = copy_module(lowered(fn, arguments, 1).exported.module)
    fold.run(module, fold.Options())
    record = folded(module)
    assert record.extra == LAYERS - 4 and [len(chain) for chain in record.arguments] == [LAYERS, LAYERS]
    four = lowered(fn, (arguments[0][:4], arguments[1]), 1).exported.module
    assert str(main(module)) == str(main(four))


def test_executes_as_jitted(rng):
    fn, (weights, x), _ = _mlp()
    weights = [tuple(rng.standard_normal(w.shape, np.float32) / 16 for w in pair) for pair in weights]
    x = rng.standard_normal(x.shape, np.float32)
    compiled = neuronx.compile(fn, tp_degree=3).lower(weights, x).compile()
    np.testing.assert_allclose(compiled(weights, x), jax.jit(fn)(weights, x), rtol=1e-5, atol=1e-5)


def test_explains_the_whole_program(monkeypatch):
    fn, arguments, options = MODELS["masked mlp"]()
    texts = [lowered(fn, arguments, 2, **options).compile().explain()]
    monkeypatch.setattr("neuronx.driver.folding", lambda stages: stages)
    texts.append(lowered(fn, arguments, 2, **options).compile().explain())
    assert texts[0] == texts[1]


def skip_to_the_end(weights, x):
    kept = []
    for w in weights:
        x = x + jnp.tanh(x @ w)
        kept.append(x)
    return x + kept[4]


def all_summed(weights, x):
    total = jnp.zeros_like(x)
    for w in weights:
        x = x + jnp.tanh(x @ w)
        total = total + x
    return total, weights[3].sum()


def numbered(weights, x):
    for number, w in enumerate(weights):
        x = x + jnp.tanh(x @ w) * float(number)
    return x


def by_turns(weights, x):
    for number, _ in enumerate(weights):
        x = x + jnp.tanh(x @ weights[number % 2])
    return x


def without_weights(weights, x):
    for _ in weights:
        x = jnp.tanh(x)
    return x


def trained(weights, x):
    return jax.grad(lambda weights: (skip_to_the_end(weights, x) ** 2).mean())(weights)


def test_leaves_alone_where_an_input_is_donated_to_a_layer():
    """The input and the first results have one type, and the input takes the first."""

    def fn(weights, x):
        told = []
        for w in weights:
            x = x + jnp.tanh(x @ w)
            told.append(x)
        return told

    arguments = [shape(64, 64)] * 10, shape(8, 64)
    for donated, extra in ((None, 6), (1, None)):
        module = copy_module(lowered(fn, arguments, 1, donate_argnums=donated).exported.module)
        fold.run(module, fold.Options())
        record = folded(module)
        assert extra == (record and record.extra)


@pytest.mark.parametrize("fn", [skip_to_the_end, all_summed, numbered, by_turns, without_weights, trained])
def test_leaves_alone_what_needs_its_middle_layers(fn):
    module = copy_module(lowered(fn, ([shape(64, 64)] * 10, shape(8, 64)), 1).exported.module)
    before = str(module)
    fold.run(module, fold.Options())
    assert folded(module) is None and str(module) == before


def test_layers_that_plan_apart_are_compiled_one_by_one():
    """Square matrices in a chain are best cut by columns and by rows in turn."""

    def chain(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return x

    exe = lowered(chain, ([shape(256, 256)] * 10, shape(8, 256)), 2).compile()
    assert "fold: equal layers were compiled one by one" in exe.explain()
    assert sum("all_reduce" in line for line in exe.as_text().splitlines()) == 5


def test_unfold_refuses_layers_that_differ():
    fn, arguments, _ = _mlp()
    module = copy_module(lowered(fn, arguments, 1).exported.module)
    fold.run(module, fold.Options())
    others = iter(["tanh", "sine", "cosine", "exponential"])
    module = parse(re.sub("stablehlo.tanh", lambda _: f"stablehlo.{next(others)}", str(module)))
    with pytest.raises(CompileError, match=r"fold: no two of its layers"):
        unfold.run(module, unfold.Options())


def test_what_does_not_fit_is_told_of_the_whole(monkeypatch):
    """The table has all layers."""
    arguments = ([(shape(32768, 65536), shape(65536, 32768))] * LAYERS, shape(8, 32768))
    texts = []
    for _ in range(2):
        with pytest.raises(OutOfDeviceMemoryError) as caught:
            lowered(mlp, arguments, 1).compile()
        texts.append(str(caught.value))
        monkeypatch.setattr("neuronx.driver.folding", lambda stages: stages)
    assert texts[0] == texts[1]


@st.composite
def stacks(draw):
    """A layer of random parts; some take an array of their own, some hand one out."""
    parts = draw(st.lists(st.sampled_from(sorted(_PARTS)), min_size=1, max_size=4))
    return parts, draw(st.integers(6, 9)), draw(st.sampled_from([1, 2, 3, 8]))


def _norm(x, scale):
    return x / (1 + jnp.abs(x).max(-1, keepdims=True)) * scale, None


def _keep(x, cache):
    kept = jax.lax.dynamic_update_slice(cache, x[:1], (2, 0))
    return x + kept.sum(0), kept


def _causal(x, weight):
    scores = jnp.where(jnp.tril(jnp.ones((8, 8), bool)), (x @ weight) @ x.T, -1e9)
    return x + jax.nn.softmax(scores) @ x, None


_PARTS = {
    "mlp": ((64, 256), lambda x, w: (x + jax.nn.relu(x @ w) @ w.T, None)),
    "gate": ((64, 64), lambda x, w: (x * jax.nn.sigmoid(x @ w), None)),
    "norm": ((64,), _norm),
    "keep": ((8, 64), _keep),
    "causal": ((64, 64), _causal),
    "tell": ((64,), lambda x, b: (x + b, (x * b).sum())),
    "turn": ((64,), lambda x, b: (jnp.roll(x, 3, axis=1) + b, None)),
}


def _check_stack(stack):
    """The program is that of all layers under the same plan, which is about as good as the best for all.

    Of 1,000 random stacks one was more than a twentieth behind: 184 us, where the plan for all takes 169.
    """
    parts, layers, tp = stack

    def network(weights, x):
        told = []
        for layer in weights:
            for part, weight in zip(parts, layer, strict=True):
                x, out = _PARTS[part][1](x, weight)
                told.append(out)
        return x, [out for out in told if out is not None]

    weights = [[shape(*_PARTS[part][0]) for part in parts]] * layers
    module = lowered(network, (weights, shape(8, 64)), tp).exported.module
    options = CompileOptions(tp_degree=tp)
    artifacts = compile_module(module, options)

    def of_all_layers(plan):
        return run_pipeline(copy_module(module), pipeline_for(options, plan))

    program, best = artifacts.program, of_all_layers(artifacts.plan)
    assert program == (of_all_layers(artifacts.cut) if artifacts.cut else best)
    assert time_program(program, INSTANCE).total_s <= 1.1 * time_program(best, INSTANCE).total_s


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(stacks())
@example((["causal", "turn", "mlp"], 6, 2))
def test_random_stacks(stack):
    _check_stack(stack)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(stacks())
def test_many_random_stacks(stack):
    _check_stack(stack)
