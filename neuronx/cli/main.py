"""The ``neuronx`` script: picks the verb, parses its arguments, turns user errors into exit status 2."""

import argparse
import os
import sys
import warnings

from absl import app, logging
from absl.flags import argparse_flags

from kernels.errors import CompileError
from neuronx.cli import analyze, cache, generate, hw, opt, plan
from neuronx.cli import run as run_verb

__all__ = ["VERBS", "main", "parse_arguments", "run"]

# What a shell reports of programs that SIGINT ended, and SIGPIPE of a reader's end: 128 + its number.
_INTERRUPTED, _BROKEN_PIPE = 130, 141
# Each a module with NAME, HELP, add_arguments(parser) and main(args) -> exit status.
VERBS = (opt, run_verb, analyze, generate, plan, hw, cache)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads ``neuronx VERB ...``; absl's own flags (``--verbosity``) may stand before the verb."""
    parser = argparse_flags.ArgumentParser(
        prog="neuronx", description="A JAX/StableHLO compiler backend and simulator for AWS Inferentia2."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        one = verbs.add_parser(verb.NAME, help=verb.HELP, description=verb.HELP)
        verb.add_arguments(one)
        one.set_defaults(verb_main=verb.main)
    return parser.parse_args(argv[1:])


def main(args: argparse.Namespace) -> int:
    """Runs the verb; returns its exit status, or 2 with a message on stderr where the input is at fault.

    Without a message 130 where the user interrupted it, and 141 where the reader of its output went away.
    """
    try:
        status = args.verb_main(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read it has closed it (`neuronx hw | head`): what is left must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except CompileError as error:
        print(f"neuronx {args.verb}: {error}", file=sys.stderr)
        return 2


def run() -> None:
    """Entry point of the ``neuronx`` script."""
    # absl's default is INFO, at which JAX reports every kind of device that this machine does not have.
    logging.set_verbosity(logging.WARNING)
    # Python's own ways are to warn once a line, and to show it: a line of this package's code.
    warnings.filterwarnings("once", category=UserWarning, append=True)
    warnings.formatwarning = lambda message, *_, **__: f"neuronx: {message}\n"
    app.run(main, flags_parser=parse_arguments)


if __name__ == "__main__":
    run()
