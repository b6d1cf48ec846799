"""The host's own patches under every method; writes docs/patches.md.

    python -m benchmarks.patches [--only FreeU_V2 EasyCache] [--methods guidance CDS] [--output docs/patches.md]

Every cell is "right", with the figure that comes closest to its bound, or the number of the sentence by which the method refuses.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import nodes
import server

from .cells import METHODS, Cell, check
from .patches import PATCHES
from .subject import toy_subject


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.patches", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PATCHES, default=list(PATCHES), metavar="PATCH")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--output", type=Path, default=Path("docs") / "patches.md")
    return parser.parse_args()


def start_nodes() -> None:
    """The host's nodes, without its server: some of their files look for its instance when they are imported."""
    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


def main() -> int:
    options = parse()
    start_nodes()
    subject = toy_subject()
    cells: dict[str, dict[str, Cell]] = {}
    for name in options.only:
        cells[name] = {}
        for method in options.methods:
            cell = cells[name][method] = check(method, PATCHES[name], subject)
            print(f"{name}, {method}: {cell.text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
