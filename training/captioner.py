"""The captioner: BLIP's architecture at small sizes, with a vocabulary of exactly the words that captions use."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor
from zerocon_pack.zerocon_core.language import captioning
from zerocon_pack.zerocon_core.toyworld import config, scene, weights

from .common import Run, log
from .dataset import pick, pictures, scenes, tensor

BATCH = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
PAD, _, _, SEP, _, DEC = range(len(SPECIAL))


def vocabulary() -> list[str]:
    """Special tokens, then the captions' words in the order in which the renderer lists them."""
    return [*SPECIAL, "a", "on", "background", *scene.COLOURS, *scene.SHAPES, *scene.PATTERNS]


def build(words: int, side: int, width: int, layers: int) -> BlipForConditionalGeneration:
    """The model with random weights, for a vocabulary of so many words and pictures of `side` pixels."""
    torch.manual_seed(5)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    vision = sizes | {"image_size": side, "patch_size": 8, "projection_dim": width, "initializer_range": 0.02}
    text = sizes | {
        "num_hidden_layers": 2,
        "vocab_size": words,
        "encoder_hidden_size": width,
        "max_position_embeddings": 64,
        "projection_dim": width,
        "pad_token_id": PAD,
        "bos_token_id": DEC,
        "sep_token_id": SEP,
        "eos_token_id": SEP,
        "label_smoothing": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    both = {"projection_dim": width, "image_text_hidden_size": width, "label_smoothing": 0.0}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, **both))


def train(steps: int) -> None:
    """Minimise the entropy of the next word."""
    model = build(len(vocabulary()), config.IMAGE_SIZE, width=96, layers=3)
    run = Run("captioner", {"captioner": model}, peak=1e-3)
    images, _ = pictures()
    words = {word: row for row, word in enumerate(vocabulary())}
    lines = torch.tensor([[DEC, *(words[word] for word in scene.caption(s).split()), SEP] for s in scenes()])

    def loss(generator: torch.Generator) -> torch.Tensor:
        index = pick(generator, BATCH)
        x = tensor(images[index.numpy()])
        x = (x + 0.03 * torch.randn(x.shape, generator=generator)) * 2.0 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.vision_model(pixel_values=x).last_hidden_state
            output = model.text_decoder(input_ids=lines[index], encoder_hidden_states=seen, labels=lines[index])
        return output.loss.float().mean()

    def report() -> None:
        export(model, vocabulary(), longest=16, folder=weights.CAPTIONER_FOLDER)
        log.info("captioner step %d exact on held-out scenes %.3f", run.step, exactness(128))

    model.train()
    run.train(loss, steps, after_save=report)


def export(model: BlipForConditionalGeneration, words: list[str], longest: int, folder: Path) -> None:
    """Write model, tokenizer and image processor as they ship, for captions of at most `longest` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    side = model.config.vision_config.image_size
    with TemporaryDirectory() as scratch:
        vocabulary_file = Path(scratch, "vocab.txt")
        vocabulary_file.write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = BertTokenizerFast(vocab=str(vocabulary_file), bos_token="[DEC]", model_max_length=longest)
        images = BlipImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        BlipProcessor(images, tokenizer).save_pretrained(scratch)
        half = BlipForConditionalGeneration(model.config)
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            shutil.copyfile(file, folder / file.name)


def exactness(count: int) -> float:
    """Share of `count` held-out scenes whose generated caption is the true one, word for word."""
    subjects = scene.held_out_scenes(count)
    images = torch.stack([torch.from_numpy(scene.render(s)) for s in subjects])
    said = captioning.caption_images(*captioning.load_captioner(weights.CAPTIONER_FOLDER), images)
    return sum(line == scene.caption(s) for line, s in zip(said, subjects, strict=True)) / count
