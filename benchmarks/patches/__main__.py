"""The host's own patches under every method; writes docs/patches.md.

    python -m benchmarks.patches [--only FreeU_V2 EasyCache] [--methods guidance CDS] [--output docs/patches.md] [--rows FILE]

Each cell is a line of --rows, and a run that was stopped goes on where it was. A cell that is neither right nor refused is left
out, told of on stderr, and tried again; then the command exits with 1. A patch takes about 10 seconds of computing.
"""

import argparse
import asyncio
import sys
from functools import partial
from pathlib import Path

import nodes
import server
from comfyui_version import __version__ as comfyui

from runs.engine import Item, here, run_all
from runs.records import ERROR, Records, Row

from ..tables import markdown
from .cells import ANSWER, GRADIENT, METHODS, MOVE, check
from .patches import PATCHES
from .subject import Subject, toy_subject

HEAD = f"""# The host's patches under every method

Made by `python -m benchmarks.patches` on ComfyUI {comfyui}, on the CPU in float32, with the toy world's U-Net (for models that
take a picture: the same with more input channels). A row is a node of the host at settings that change what the model computes.

**right**: two runs give the same bits; gradients agree with central differences within {GRADIENT:g} (guidance, CDS, training);
equal prompts move the latent by at most {MOVE:g} (guidance, CDS); inversion, masks and word maps are what the host answers when
it is asked afresh about each prompt alone, within {ANSWER:g}; checkpointing changes no bit of a training. The figure is the one
closest to its bound.

**refused**: the node says no before the first step, with the sentence of that number.
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.patches", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PATCHES, default=list(PATCHES), metavar="PATCH")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--output", type=Path, default=Path("docs") / "patches.md")
    parser.add_argument("--rows", type=Path, default=Path("output") / "patches.jsonl")
    return parser.parse_args()


def start_nodes() -> None:
    """The host's nodes, without its server: some of their files look for its instance when they are imported."""
    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


def row(method: str, patch: str, subject: Subject) -> Row:
    cell = check(method, PATCHES[patch], subject)
    return {"refusal": cell.refusal, "figure": cell.worst} if cell.good else {ERROR: cell.text}


def table(rows: list[Row], methods: list[str]) -> str:
    """One line a patch, and the sentences of the refusals below."""
    sentences = list(dict.fromkeys(row["refusal"] for row in rows if row["refusal"]))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        said = f"refused ({sentences.index(row['refusal']) + 1})" if row["refusal"] else f"right, {row['figure']}"
        cells.setdefault(row["patch"], {})[row["method"]] = said
    lines = [[patch, *(found.get(method, "") for method in methods)] for patch, found in cells.items()]
    numbered = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1)]
    return "\n\n".join([HEAD.strip(), markdown(["patch", *methods], lines), *(["\n".join(numbered)] if numbered else [])])


def main() -> int:
    options = parse()
    start_nodes()
    subject = toy_subject()
    items = [Item((patch, method), partial(row, method, patch, subject)) for patch in options.only for method in options.methods]
    rows = run_all(items, Records(options.rows, ("patch", "method"), {"comfyui": comfyui}), here)
    options.output.write_text(table(rows, options.methods) + "\n", encoding="utf-8")
    return 0 if len(rows) == len(items) else 1


if __name__ == "__main__":
    sys.exit(main())
