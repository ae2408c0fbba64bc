"""``neuronx analyze``: what the real compiler would reject or degrade in a file or a Python function."""

import argparse

from neuronx.analysis import Analysis, analyze, analyze_module
from neuronx.driver import DEFAULT_INSTANCE, CompileOptions
from neuronx.named import argument_type, find_function, read_module, traced

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "analyze"
HELP = "say what neuronx-cc would reject or degrade, and what to write instead; exit status 1 if it rejects"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    parser.add_argument("target", help="a .mlir file, - for standard input, or module:function")
    parser.add_argument(
        "arguments", nargs="*", metavar="TYPE", help="of each argument of the function, as f32[8,128]"
    )
    parser.add_argument("--tp-degree", type=int, default=1, help="cores to shard over (default 1)")
    parser.add_argument("--instance", default=DEFAULT_INSTANCE, help=f"default {DEFAULT_INSTANCE}")


def main(args: argparse.Namespace) -> int:
    """Prints the findings; 1 if one rejects the program, else 0."""
    options = CompileOptions(tp_degree=args.tp_degree, instance=args.instance)
    if ":" in args.target:
        found = _of_function(args, options)
    else:
        found = analyze_module(read_module(args.target), options)
    print(found)
    return 1 if found.rejected else 0


def _of_function(args: argparse.Namespace, options: CompileOptions) -> Analysis:
    function, types = find_function(args.target), map(argument_type, args.arguments)
    with traced(args.target, args.arguments):
        return analyze(function, *types, tp_degree=options.tp_degree, instance=options.instance)
