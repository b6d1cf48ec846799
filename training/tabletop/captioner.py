"""The captioner: BLIP's architecture at small sizes, with a vocabulary of exactly the words that captions use."""

import numpy as np
import torch
from common import WEIGHTS, Run, log, pack
from dataset import held_out_pictures, pick_pictures, scenes, shards
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

captioning = pack("zerocon_core.captioning")
captions = pack("zerocon_core.tabletop.captions")
render = pack("zerocon_core.tabletop.render")
sampling = pack("zerocon_core.tabletop.sampling")

BATCH = 16
HELD_OUT = 100
FOLDER = WEIGHTS / "captioner"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
PAD, _, _, SEP, _, DEC = range(len(SPECIAL))
IGNORED = -100


def vocabulary() -> list[str]:
    """Special tokens, then the captions' words."""
    return [*SPECIAL, *captions.VOCABULARY]


def build() -> BlipForConditionalGeneration:
    """The model with random weights."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = sizes | {"image_size": render.IMAGE_SIZE, "patch_size": 8, "projection_dim": 128, "initializer_range": 0.02}
    text = sizes | {
        "num_hidden_layers": 2,
        "vocab_size": len(vocabulary()),
        "encoder_hidden_size": sizes["hidden_size"],
        "max_position_embeddings": 64,
        "projection_dim": 128,
        "pad_token_id": PAD,
        "bos_token_id": DEC,
        "sep_token_id": SEP,
        "eos_token_id": SEP,
        "label_smoothing": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    blip = BlipConfig(text_config=text, vision_config=vision, projection_dim=128, image_text_hidden_size=128, label_smoothing=0.0)
    return BlipForConditionalGeneration(blip)


def mirrored(line: str) -> str:
    """The caption of the mirror image: its solids the other way round."""
    solids, floor = line.split(" on ")
    return " and ".join(reversed(solids.split(" and "))) + f" on {floor}"


def tokens(lines: list[str]) -> torch.Tensor:
    """Ids (N, longest) of captions between start and end, padded."""
    words = {word: row for row, word in enumerate(vocabulary())}
    ids = [torch.tensor([DEC, *(words[word] for word in line.split()), SEP]) for line in lines]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def train(steps: int, until: int) -> None:
    """Minimise the entropy of the next word, over pictures and their mirror images."""
    model, images = build(), shards()
    run = Run("captioner", {"captioner": model}, peak=1e-3)
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
        export(model)
        log.info("captioner step %d exact on held-out scenes %.3f", run.step, exactness(held_out, true))

    model.train()
    run.train(loss, steps, until, after_save=report)


def export(model: BlipForConditionalGeneration) -> None:
    """Write model, tokenizer and image processor as they ship."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(FOLDER / "vocab.txt"), bos_token="[DEC]", model_max_length=20)
    side = {"height": render.IMAGE_SIZE, "width": render.IMAGE_SIZE}
    images = BlipImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    BlipProcessor(images, tokenizer).save_pretrained(FOLDER)
    half = BlipForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(FOLDER)


def exactness(images: torch.Tensor, true: list[str]) -> float:
    """Share of pictures (N, 3, H, W) in [0, 1] whose generated caption is the true one, word for word."""
    said = captioning.caption_images(*captioning.load_captioner(FOLDER), images.movedim(1, -1))
    return float(np.mean([line == other for line, other in zip(said, true, strict=True)]))
