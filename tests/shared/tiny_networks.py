"""Random networks of the real classes, small where they can be, saved in the layouts that they are published in."""

import json
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipPreTrainedModel,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ViTConfig,
    ViTModel,
)

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

BLIP_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] a the cat dog bird red green blue on under mat hat with and of in".split()


def save_blip(folder: Path, kind: type[BlipPreTrainedModel] = BlipForConditionalGeneration) -> Path:
    """A BLIP of one of transformers' kinds that knows `BLIP_WORDS` and sees 32x32 pixels."""
    (folder / "vocab.txt").write_text("\n".join(BLIP_WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    stop = BLIP_WORDS.index("[SEP]")
    text = {
        "vocab_size": len(BLIP_WORDS), "encoder_hidden_size": 16, "bos_token_id": BLIP_WORDS.index("[DEC]"), "sep_token_id": stop,
        "eos_token_id": stop, "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 1.0,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    size = SIZE | {"projection_dim": 16}
    torch.manual_seed(0)
    kind(BlipConfig(text_config=size | text, vision_config=size | vision)).half().save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A ViT with two layers and 7x7 patches; the papers' has 12 and 28x28."""
    torch.manual_seed(0)
    config = ViTConfig(**SIZE, image_size=224, patch_size=32, layer_norm_eps=1e-6, initializer_range=0.3)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP that reads 16 letters and sees 32x32 pixels."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    start, stop = tokens.index("<|startoftext|>"), tokens.index("<|endoftext|>")
    text = {"vocab_size": len(tokens), "max_position_embeddings": 18, "bos_token_id": start, "eos_token_id": stop}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=SIZE | text | {"pad_token_id": stop}, vision_config=SIZE | {"image_size": 32, "patch_size": 8},
        projection_dim=16, initializer_factor=5.0,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def save_lpips_trunk(file: Path, network: str) -> Path:
    """Weights of one of torchvision's networks as it publishes them, but for the classifier, which LPIPS does not have."""
    from torchvision import models

    with torch.device("meta"):
        features = models.get_model(network).features
    features.to_empty(device="cpu")
    torch.manual_seed(0)
    for layer in features.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    torch.save({f"features.{key}": tensor for key, tensor in features.state_dict().items()}, file)
    return file


def save_inception(file: Path) -> Path:
    """All of FID's Inception, so tuned that images still differ after its 94 layers."""
    from torch_fidelity import FeatureExtractorInceptionV3

    with patch("torch.load"), patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception", ["2048"], "no file")
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), file)
    return file
