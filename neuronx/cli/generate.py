"""Verb ``generate``: OPT on the simulated ring, its tokens, and the time and memory they would take."""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from neuronx.driver import AUTO_CAST_TYPES, AUTO_CASTS, DEFAULT_INSTANCE
from neuronx.models import opt
from neuronx.models.generation import DTYPES, Generated, Generator, logit_errors, tolerance
from neuronx.models.quantised import WEIGHTS, quantised

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "generate"
HELP = "generate text with OPT on the simulated ring and predict its speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    parser.add_argument("--model", default="opt-125m", help=f"one of {', '.join(opt.SIZES)}")
    parser.add_argument("--tp-degree", type=int, default=1, help="number of cores (default %(default)s)")
    parser.add_argument("--instance", default=DEFAULT_INSTANCE, help="instance size (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once (default %(default)s)")
    parser.add_argument("--prompt-len", type=int, default=32, help="tokens read (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens written (default %(default)s)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="type of weights and cache")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), help="matrices of layers in 8 bits, with scales")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and prompt")
    parser.add_argument("--auto-cast", choices=AUTO_CASTS, default=AUTO_CASTS[0], help="f32 ops to narrow")
    parser.add_argument("--auto-cast-type", choices=AUTO_CAST_TYPES, default=AUTO_CAST_TYPES[0])
    parser.add_argument("--verify", action="store_true", help="compare every logit with jax.jit on the CPU")
    parser.add_argument(
        "--share-layer-weights",
        action="store_true",
        help="all layers compute with one layer's random weights: models larger than memory run",
    )
    parser.add_argument(
        "--numerics", choices=("on", "off"), default="on", help="off: only predict, no weights in memory"
    )


def main(args: argparse.Namespace) -> int:
    """Prints tokens and table; 1 if ``--verify`` finds a logit beyond the tolerance, else 0."""
    if args.verify and args.numerics == "off":
        raise SystemExit("neuronx generate: --verify needs --numerics on")
    start = time.perf_counter()
    generator = Generator.build(
        opt.config(args.model),
        dtype=args.dtype,
        batch=args.batch,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        weights=args.weights or "",
        tp_degree=args.tp_degree,
        instance=args.instance,
        auto_cast=args.auto_cast,
        auto_cast_type=args.auto_cast_type,
    )
    compile_s = time.perf_counter() - start
    host = [("host: compile", f"{compile_s:.2f} s")]
    status = 0
    if args.numerics == "on":
        params = opt.parameters(
            generator.cfg, DTYPES[args.dtype], args.seed, share_layers=args.share_layer_weights
        )
        if args.weights:
            params = quantised(params, args.weights)
        prompt = _prompt(generator, args.seed)
        got = generator.run(params, prompt)
        _print_tokens(got)
        steps = got.step_host_s[1:]
        host += [
            ("host: prefill", f"{got.prefill_host_s:.2f} s"),
            ("host: decode", f"{got.decode_host_s:.2f} s"),
            *([("host: median token", f"{statistics.median(steps):.3f} s")] if steps else []),
            ("host: peak memory", f"{_peak_bytes() / 2**30:.2f} GiB"),
        ]
        if args.verify:
            status = _verify(generator, params, prompt, got, _types(args))
    _print_table([*_header(args), *_predictions(generator), *host])
    return status


def _prompt(generator: Generator, seed: int) -> np.ndarray:
    shape = (generator.batch, generator.prompt_len)
    return np.random.default_rng(seed).integers(0, generator.cfg.vocab, shape, dtype=np.int32)


def _types(args: argparse.Namespace) -> tuple[str, ...]:
    """What values are computed in; products of a model in 16 bits are not cast."""
    is_cast = args.auto_cast == "all" or (args.auto_cast == "matmult" and args.dtype == "f32")
    return (args.dtype, args.auto_cast_type) if is_cast else (args.dtype,)


def _verify(
    generator: Generator, params: dict, prompt: np.ndarray, got: Generated, types: Sequence[str]
) -> int:
    errors = logit_errors(generator, params, prompt, got)
    allowed = tolerance(generator, got, *types)
    worst = int(np.argmax(errors))
    count = sum(step.size for step in got.logits)
    verdict = "ok" if errors[worst] <= allowed else "FAILED"
    print(
        f"verify {verdict}: {count} logits of {len(errors)} steps against jax.jit on the CPU, "
        f"max abs error {errors[worst]:.3g} at step {worst}, tolerance {allowed:.3g} ({', '.join(types)})"
    )
    return 0 if verdict == "ok" else 1


def _print_tokens(got: Generated) -> None:
    for row, tokens in enumerate(got.tokens):
        print(f"tokens[{row}]: {' '.join(map(str, tokens))}")


def _peak_bytes() -> int:
    """Most memory the process has held (Linux counts kibibytes, macOS bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _header(args: argparse.Namespace) -> list[tuple[str, str]]:
    shared = " of one layer in all layers" if args.share_layer_weights else ""
    stored = f", layers' matrices in {args.weights}" if args.weights else ""
    return [
        ("model", f"{args.model} {args.dtype}{stored}, random weights{shared}"),
        ("instance", f"{args.instance} (simulated), tp_degree {args.tp_degree}"),
        ("request", f"batch {args.batch}, {args.prompt_len} prompt + {args.new_tokens} new tokens"),
    ]


def _predictions(generator: Generator) -> list[tuple[str, str]]:
    memory = [exe.memory_analysis() for exe in (generator.prefill, generator.decode)]
    peak = max(memory, key=lambda stats: stats.peak_hbm_bytes)
    return [
        ("time to first token", f"{generator.time_to_first_token_s * 1e3:.3f} ms (predicted)"),
        ("time per output token", f"{generator.time_per_token_s * 1e3:.3f} ms (predicted)"),
        ("tokens per second", f"{generator.tokens_per_s:.1f} (predicted)"),
        ("HBM per core", f"{peak.peak_hbm_bytes / 2**30:.3f} of {peak.hbm_capacity_bytes / 2**30:.1f} GiB"),
    ]


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
