"""The captioner: BLIP's architecture at small sizes, with a vocabulary of exactly the words that captions use."""

import numpy as np
import torch
from zerocon_pack.zerocon_core.language import captioning
from zerocon_pack.zerocon_core.tabletop import captions, render, sampling, weights

from ..captioner import DEC, PAD, SEP, SPECIAL, build, export
from ..common import Run, log
from .dataset import held_out_pictures, pick_pictures, scenes, shards

BATCH = 16
HELD_OUT = 100
FOLDER = weights.FOLDER / "captioner"
IGNORED = -100


def vocabulary() -> list[str]:
    """Special tokens, then the captions' words."""
    return [*SPECIAL, *captions.VOCABULARY]


def mirrored(line: str) -> str:
    """The caption of the mirror image: its solids the other way round."""
    solids, floor = line.split(" on ")
    return " and ".join(reversed(solids.split(" and "))) + f" on {floor}"


def tokens(lines: list[str]) -> torch.Tensor:
    """Ids (N, longest) of captions between start and end, padded."""
    words = {word: row for row, word in enumerate(vocabulary())}
    ids = [torch.tensor([DEC, *(words[word] for word in line.split()), SEP]) for line in lines]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def train(steps: int, until: int | None) -> None:
    """Minimise the entropy of the next word, over pictures and their mirror images."""
    model, images = build(len(vocabulary()), render.IMAGE_SIZE, width=128, layers=4), shards()
    run = Run("tabletop/captioner", {"captioner": model}, peak=1e-3)
    said = [captions.caption(s) for s in scenes()]
    lines = tokens([*said, *map(mirrored, said)]).unflatten(0, (2, len(said)))
    held_out, true = held_out_pictures(HELD_OUT), [captions.caption(s) for s in sampling.held_out_scenes(HELD_OUT)]

    def loss(generator: torch.Generator) -> torch.Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        index, flipped = rng.integers(len(said), size=BATCH), torch.from_numpy(rng.integers(2, size=BATCH))
        x = pick_pictures(images, torch.from_numpy(index))
        x = torch.where(flipped.bool().view(-1, 1, 1, 1), x.flip(-1), x)
        x = (x + 0.02 * torch.randn(x.shape, generator=generator)) * 2.0 - 1.0
        line = lines[flipped, index]
        seen = model.vision_model(pixel_values=x).last_hidden_state
        output = model.text_decoder(
            input_ids=line,
            attention_mask=(line != PAD).long(),
            encoder_hidden_states=seen,
            labels=line.masked_fill(line == PAD, IGNORED),
        )
        return output.loss.mean()

    def report() -> None:
        export(model, vocabulary(), longest=20, folder=FOLDER)
        log.info("captioner step %d exact on held-out scenes %.3f", run.step, exactness(held_out, true))

    model.train()
    run.train(loss, steps, until, after_save=report)


def exactness(images: torch.Tensor, true: list[str]) -> float:
    """Share of pictures (N, 3, H, W) in [0, 1] whose generated caption is the true one, word for word."""
    said = captioning.caption_images(*captioning.load_captioner(FOLDER), images.movedim(1, -1))
    return float(np.mean([line == other for line, other in zip(said, true, strict=True)]))
