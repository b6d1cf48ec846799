"""DDS and CDS on held-out toy edits over w_cut, judged as in toy_edits.py.

    python benchmarks/cds_edits.py --comfyui PATH --json FILE [--scenes 100] [--batch 25]

60 iterations that are longer than the papers' stand for their 200. FILE grows by one line a batch, and a run that was stopped
goes on where it was. Toy figures: they say nothing about Stable Diffusion, whose latents and features are others.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from toy_edits import Bench, Edit, edits, table

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

ITERATIONS, CFG = 60, 7.5


@dataclass(frozen=True)
class Setting:
    order: str
    step_size: float
    w_cut: float
    contrast: str = "cds"

    @property
    def name(self) -> str:
        method = f"CDS, w_cut {self.w_cut:g}, {self.contrast}" if self.w_cut else "DDS"
        return f"{method}, {self.order}, step {self.step_size:g}"


SETTINGS = [Setting("descending", 0.15, w) for w in (0, 5, 10, 20, 60)]
SETTINGS += [Setting("descending", 0.2, 20), Setting("random", 0.3, 0)]


def edit(bench: Bench, batch: list[Edit], setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Source images and edited images (B, H, W, 3)."""
    bridge, attention, core, patchnce = (
        pack(name) for name in ("nodes.bridge.cds", "nodes.bridge.attention", "zerocon_core.cds", "zerocon_core.patchnce")
    )
    images = torch.from_numpy(np.stack([bench.core.scene.render(edit.source) for edit in batch]))
    source, target = (
        bench.conditioning([bench.encode(bench.core.scene.caption(getattr(edit, side))) for edit in batch])
        for side in ("source", "target")
    )
    negative = bench.conditioning([bench.encode("")] * len(batch))
    weights = core.CDSWeights(w_cut=setting.w_cut, patchnce=patchnce.PatchNCE(direction=setting.contrast))
    guider = bridge.CDSGuider(bench.model, source, [target], negative, CFG, bool(setting.w_cut))
    layers = attention.decoder_self_attention(bench.model.get_model_object("diffusion_model"))
    sampler = bridge.CDSSampler(layers, setting.step_size, weights, 0, False, 0)
    timesteps = core.draw_timesteps(ITERATIONS, 50, 948, setting.order, torch.Generator().manual_seed(0))
    [latent] = bridge.optimize(bench.model, guider, sampler, bench.vae.encode(images), timesteps, None)
    return images, bench.vae.decode(latent)


def draw(bench: Bench, settings: list[Setting], count: int) -> Image.Image:
    """The first `count` edits from left to right: source, one row a setting, true edit."""
    batch = list(edits(bench.core.scene, count))
    results = [edit(bench, batch, setting) for setting in settings]
    truth = np.stack([bench.core.scene.render(edit.target) for edit in batch])
    rows = [results[0][0].numpy(), *(edited.numpy() for _, edited in results), truth]
    framed = [np.pad(row, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1.0) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in framed])
    picture = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="where to draw DDS and CDS at w_cut 20, and nothing else is done")
    options = parser.parse_args()
    start_host(options.comfyui)

    done = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    with torch.inference_mode():
        bench, began = Bench(), time.monotonic()
        if options.picture:
            draw(bench, [s for s in SETTINGS if s.step_size == 0.15 and s.w_cut in (0, 20)], 8).save(options.picture)
            return
        for setting in SETTINGS:
            todo = edits(bench.core.scene, options.scenes)
            for start in range(0, options.scenes, options.batch):
                batch = list(islice(todo, options.batch))
                if any(line["setting"] == setting.name and line["start"] == start for line in done):
                    continue
                records = bench.score(batch, *edit(bench, batch, setting))
                done.append({"setting": setting.name, "start": start, "edits": records})
                with options.json.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
                print(f"{time.monotonic() - began:6.0f} s  {setting.name}, from {start}", file=sys.stderr)
    results = {s.name: [r for line in done if line["setting"] == s.name for r in line["edits"]] for s in SETTINGS}
    print(table({name: records for name, records in results.items() if records}))


if __name__ == "__main__":
    main()
