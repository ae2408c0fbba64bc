"""Verb ``cache``: what the compile cache holds, and how to empty it."""

import argparse
import time

from neuronx.cache import LIMIT_BYTES, open_cache

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "cache"
HELP = "list the compile cache, or empty it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    parser.add_argument("--clear", action="store_true", help="remove all entries")


def main(args: argparse.Namespace) -> int:
    """Prints directory, size and entries, the last used first; returns 0."""
    cache = open_cache()
    if cache is None:
        print("the compile cache is off: NEURONX_CACHE_DIR is empty")
        return 0
    entries = cache.clear() if args.clear else cache.entries()
    size_bytes = sum(entry.size_bytes for entry in entries)
    verb = "removed" if args.clear else "holds"
    print(
        f"{cache.directory} {verb} {len(entries)} compilations, "
        f"{size_bytes / 1e6:.1f} MB of at most {LIMIT_BYTES / 1e6:.0f} MB"
    )
    for entry in [] if args.clear else entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{used}  {entry.size_bytes / 1e6:8.2f} MB  {entry.name}")
    return 0
