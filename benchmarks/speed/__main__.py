"""Time and memory of the loops beside the published ones; writes docs/speed.md.

    python -m benchmarks.speed [--rounds 5] [--steps 4] [--channels 128] [--side 32] [--only cds memory] [--output docs/speed.md]

Times are taken at a size where computing decides (--channels, --side; with 320 and 64 it is SD1.5 at 512x512) and at one where
Python and the number of operations decide (32 channels, 8x8, with SD1.5's and SDXL's depth), as they do on a fast GPU in half
precision. All ways run by turns. Set OMP_NUM_THREADS=1 on a machine that others use too.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from comfyui_version import __version__ as comfyui

from . import cds, gradient_pass, guided_step, injection, memory
from .shapes import Shape
from .timing import report

Section = tuple[str, dict]
"""Markdown, and its figures."""


def guided_steps(shape: Shape, options: argparse.Namespace) -> Section:
    timing = guided_step.measure(shape, options.steps, options.rounds)
    return report(timing, guided_step.UNIT, guided_step.AGAINST), {"seconds": timing.seconds}


def injected_steps(shape: Shape, options: argparse.Namespace) -> Section:
    timing = injection.measure(shape, options.steps, options.rounds)
    return report(timing, injection.UNIT, ()), {"seconds": timing.seconds}


def iterations_of_cds(shape: Shape, options: argparse.Namespace) -> Section:
    timing = cds.measure(shape, options.steps, options.rounds)
    return report(timing, cds.UNIT, cds.AGAINST), {"seconds": timing.seconds}


def gradient_passes(shape: Shape, options: argparse.Namespace) -> Section:
    timing, difference = gradient_pass.measure(shape, options.rounds)
    equal = "bit for bit the same" if difference == 0 else f"within {difference:.1e} of the largest"
    table = report(timing, gradient_pass.UNIT, gradient_pass.AGAINST)
    return f"{table}\n\nThe gradients of all ways are {equal}.", {"seconds": timing.seconds, "difference": difference}


TIMES: dict[str, Callable[[Shape, argparse.Namespace], Section]] = {
    "guided_step": guided_steps, "injection": injected_steps, "cds": iterations_of_cds, "gradient_pass": gradient_passes,
}  # fmt: skip
MEMORY = "memory"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of sampling, and iterations of CDS, in each round")
    parser.add_argument("--channels", type=int, default=128, help="of the size where computing decides")
    parser.add_argument("--side", type=int, default=32, help="of its latent")
    parser.add_argument("--only", nargs="+", choices=[*TIMES, MEMORY], default=[*TIMES, MEMORY])
    parser.add_argument("--output", type=Path, default=Path("docs") / "speed.md")
    parser.add_argument("--json", type=Path, help="where to write the seconds of every round and the bytes")
    return parser.parse_args()


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return f"{device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, ComfyUI {comfyui}, float32"


def main() -> None:
    options = parse()
    shapes = [Shape("SD1.5", options.channels, options.side), Shape("SD1.5", 32, 8), Shape("SDXL", 32, 8)]
    command = " ".join(["python -m benchmarks.speed", *sys.argv[1:]])
    parts, figures = [f"# Speed and memory\n\nWritten by `{command}` on {machine()}."], {}
    for name in options.only:
        for shape in shapes if name in TIMES else ():
            text, figures[f"{name}, {shape}"] = TIMES[name](shape, options)
            parts.append(text)
            print(text, end="\n\n", flush=True)
        if name == MEMORY:
            text, figures[MEMORY] = memory.report()
            parts.append(f"{text}\n\n{' '.join(memory.__doc__.split())}")
            print(text, flush=True)
    options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
