"""Nothing in the folder of a network reaches the hub, runs code or reads another file, whatever its settings ask for."""

import json
import socket
import subprocess

import huggingface_hub
import pytest
import torch
from network_folders import KINDS, configure, network
from transformers import BertConfig, BlipTextConfig, CLIPConfig, ViTConfig

from zerocon_core.language.captioning import caption_images
from zerocon_core.pretrained import own_settings


@pytest.fixture
def no_way_out(monkeypatch):
    """The network, the hub's cache and other programs, none of which a folder of weights has any need of."""

    def stop(*args, **kwargs):
        raise AssertionError(f"reached out: {args} {kwargs}")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, stop)
    monkeypatch.setattr(socket.socket, "connect", stop)
    monkeypatch.setattr(socket, "getaddrinfo", stop)
    monkeypatch.setattr(subprocess, "Popen", stop)
    monkeypatch.setattr("builtins.input", stop)  # transformers asks there whether to run code


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Own: ...\n"
REACHING = {
    "attention": {"attn_implementation": "kernels-community/flash-attn"},
    "private attention": {"_attn_implementation": "somebody/kernel", "_attn_implementation_internal": "somebody/kernel"},
    "flash": {"attn_implementation": "flash_attention_2"},
    "inner attention": {"attn_implementation": {"": "a/b", "text_config": "a/b", "vision_config": "a/b"}},
    "code": {"auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoModelForMaskedLM": "own.Own"}},
    "other repository's code": {"auto_map": {"AutoConfig": "somebody/code--own.Own", "AutoModel": "somebody/code--own.Own"}},
    "quantiser": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "fp8 kernels": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "other weights": {"transformers_weights": "../elsewhere/model.safetensors"},
    "fused layers": {"fusion_config": {"rms_norm": True}},
    "other config": {"configuration_files": ["config.4.0.0.json"]},
    "tuples": {"return_dict": False, "output_attentions": True, "output_hidden_states": True},
    "name": {"name_or_path": "somebody/else", "_name_or_path": "somebody/else", "tokenizer_class": "somebody/else"},
}


@pytest.mark.parametrize("settings", REACHING.values(), ids=REACHING)
def test_a_config_reaches_nothing(what, folder, saved, settings, no_way_out):
    """Neither the hub nor code nor another file: the network is the one that it is without these settings."""
    inner = {}
    for part in ("text_config", "vision_config"):
        if part in json.loads((folder / "config.json").read_text()):
            inner[part] = json.loads((folder / "config.json").read_text())[part] | settings
    configure(folder, **settings, **inner)
    (folder / "own.py").write_text(CODE)
    (folder / "config.4.0.0.json").write_text("{}")
    found, expected = network(KINDS[what].load(folder)), network(KINDS[what].load(saved[what]))
    assert all(torch.equal(*pair) for pair in zip(found.state_dict().values(), expected.state_dict().values(), strict=True))
    assert not (folder / "ran").exists()
    attention = {m.config._attn_implementation for m in found.modules() if hasattr(m, "config")}
    assert attention <= {"sdpa", "eager"}


def test_nothing_beside_the_config_reaches_further(what, folder, no_way_out):
    """Adapters, a generate function of their own, processors and tokenizers that name classes and repositories."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/base"}')
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)
    (folder / "own.py").write_text(CODE)
    audio = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "somebody/audio"}
    (folder / "audio_tokenizer_config.json").write_text(json.dumps(audio))
    reaching = {
        "processor_config.json": {"auto_map": {"AutoProcessor": "own.Own"}, "audio_tokenizer": audio},
        "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"},
        "generation_config.json": {"custom_generate": "somebody/generate", "cache_implementation": "somebody/cache"},
    }
    for name, settings in reaching.items():
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | settings))
    loaded = KINDS[what].load(folder)
    if what == "captioner":
        assert caption_images(*loaded, torch.rand(1, 32, 32, 3), max_tokens=2)
    assert not list(folder.rglob("ran"))


def test_settings_that_shape_a_network_are_kept():
    """All of them, as the classes of the configs in transformers' own files have them."""
    for kind, settings in ((BertConfig, {"hidden_size": 8, "layer_norm_eps": 0.5, "type_vocab_size": 3}),
                           (ViTConfig, {"qkv_bias": False, "patch_size": 4}), (BlipTextConfig, {"sep_token_id": 4})):  # fmt: skip
        assert own_settings(kind, settings | {"auto_map": {}, "return_dict": False}) == settings
    text = {"hidden_size": 8, "vocab_size": 9}
    both = {"projection_dim": 3, "text_config": text, "text_config_dict": {"hidden_size": 16}}
    assert own_settings(CLIPConfig, both) == both
    assert own_settings(CLIPConfig, {"text_config": text | {"attn_implementation": "a/b"}}) == {"text_config": text}
