"""What is loaded from a folder is the whole network that was asked for, and nothing in the folder reaches further."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
import torch
from bert_files import write_bert
from safetensors.torch import load_file, save_file
from tiny_networks import save_blip, save_clip, save_dino
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    CLIPConfig,
    ViTConfig,
    ViTForImageClassification,
)

from zerocon_core.language.captioning import caption_images, load_captioner
from zerocon_core.language.fill_mask import load_fill_mask
from zerocon_core.metrics.networks import load_clip, load_dino
from zerocon_core.pretrained import load_tensors, own_settings


class Kind(NamedTuple):
    save: Callable[[Path], Path]
    load: Callable[[Path], object]
    tensor: str
    """One of those in model.safetensors."""


KINDS = {
    "captioner": Kind(save_blip, load_captioner, "vision_model.embeddings.class_embedding"),
    "BERT model": Kind(write_bert, load_fill_mask, "bert.embeddings.word_embeddings.weight"),
    "CLIP": Kind(save_clip, load_clip, "visual_projection.weight"),
    "ViT": Kind(save_dino, load_dino, "embeddings.position_embeddings"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    return {what: kind.save(tmp_path_factory.mktemp("network")) for what, kind in KINDS.items()}


@pytest.fixture(params=KINDS)
def what(request) -> str:
    return request.param


@pytest.fixture
def folder(saved, what, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(saved[what], tmp_path / "network")


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """`edit` the tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def network(loaded) -> nn.Module:
    return loaded[0] if isinstance(loaded, tuple) else loaded


def refusal(what: str, folder: Path) -> str:
    with pytest.raises(OSError) as caught:
        KINDS[what].load(folder)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


def test_weights_are_those_of_the_file_in_float32(what, folder):
    loaded = network(KINDS[what].load(folder))
    ours = dict(loaded.named_parameters())
    theirs = load_file(folder / "model.safetensors")
    assert not any(module.training for module in list(loaded.modules())[1:])
    assert all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in ours.values())
    sums = sorted(tensor.double().abs().sum().item() for tensor in theirs.values())
    assert sorted(parameter.double().abs().sum().item() for parameter in ours.values()) == sums


def test_three_missing_tensors_are_refused(what, folder):
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [KINDS[what].tensor, *sorted(tensors)[-2:]]:
            tensors.pop(name, None)

    change(folder, drop)
    assert f"the {what} in {folder} is incomplete: " in refusal(what, folder)


def test_a_tensor_too_many_is_refused(what, folder):
    change(folder, lambda tensors: tensors.update({"adapter.weight": torch.ones(2)}))
    assert "is another kind of network: a " in (said := refusal(what, folder)) and said.endswith(" has no adapter.weight")


def test_another_shape_than_the_config_says_is_refused(what, folder):
    name = KINDS[what].tensor
    change(folder, lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()}))
    assert f"does not fit its config.json: {name} is (" in refusal(what, folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(what, folder, value):
    change(folder, lambda tensors: tensors[KINDS[what].tensor].view(-1)[-1:].fill_(value))
    assert refusal(what, folder).endswith(f"{KINDS[what].tensor} holds NaN or infinite values; get it again")


def test_a_missing_folder_is_refused(what, tmp_path):
    assert refusal(what, tmp_path / "nothing").endswith(f"holds no {what}: config.json is missing")


def test_missing_weights_are_refused(what, folder):
    (folder / "model.safetensors").unlink()
    assert "is incomplete: model.safetensors is missing" in refusal(what, folder)


def test_pickled_weights_are_not_read(what, folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(what, folder)


def test_a_cut_file_is_refused(what, folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged" in refusal(what, folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_config_is_refused(what, folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "cannot be read: config.json is damaged" in refusal(what, folder)


@pytest.mark.parametrize("value", [7, "seven", None])
def test_settings_of_no_network_are_refused(what, folder, value):
    configure(folder, **{"text_config" if what in ("captioner", "CLIP") else "hidden_size": value})
    assert "cannot be read: " in (said := refusal(what, folder)) or "does not fit its config.json" in said


def test_every_network_of_another_type_is_refused(what, saved):
    for other in saved.keys() - {what}:
        assert f"{saved[other]} holds no {what}: its config.json is of model_type " in refusal(what, saved[other])


@pytest.mark.parametrize("kind", [BlipForQuestionAnswering, BlipForImageTextRetrieval])
def test_a_blip_that_does_not_caption_is_refused(kind, tmp_path):
    said = refusal("captioner", save_blip(tmp_path, kind))
    assert "is another kind of network: a BlipForConditionalGeneration has no " in said


@pytest.mark.parametrize("what", ["captioner", "BERT model", "CLIP"], indirect=True)
def test_a_missing_vocabulary_is_refused(what, folder):
    """transformers goes on with one that knows no words."""
    for name in ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    assert "its vocabulary is missing" in refusal(what, folder)


@pytest.mark.parametrize("what", ["captioner", "BERT model"], indirect=True)
def test_a_vocabulary_of_another_network_is_refused(what, folder):
    words = (folder / "vocab.txt").read_text() + "\n" + "\n".join(f"word{i}" for i in range(99))
    for file in folder.glob("tokenizer*.json"):
        file.unlink()
    (folder / "vocab.txt").write_text(words)
    assert "does not fit its vocabulary" in refusal(what, folder)


def test_buffers_that_older_versions_saved_are_no_matter(what, folder):
    change(folder, lambda tensors: tensors.update({"text_model.embeddings.position_ids": torch.arange(18)[None]}))
    KINDS[what].load(folder)


@pytest.mark.parametrize("what", ["captioner", "BERT model"], indirect=True)
def test_weights_that_share_a_tensor_may_be_saved_apart(what, folder):
    """As in published files: the embeddings and the layer that reads words off them, under both names."""
    expected = network(KINDS[what].load(folder)).state_dict()
    assert expected.keys() - load_file(folder / "model.safetensors").keys()
    save_file({name: tensor.clone() for name, tensor in expected.items()}, folder / "model.safetensors", {"format": "pt"})
    found = network(KINDS[what].load(folder)).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_heads_of_published_berts_and_vits_are_no_matter(tmp_path):
    """google-bert/bert-base-uncased holds a BertForPreTraining, with the older names of its norms; any ViT has the keys."""
    bert = write_bert(tmp_path / "bert")
    expected = load_fill_mask(bert)[0].state_dict()
    torch.manual_seed(0)
    whole = BertForPreTraining.from_pretrained(bert)
    whole.save_pretrained(bert)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, former in old.items():
                if name.endswith(new):
                    tensors[name.replace(new, former)] = tensors.pop(name)

    change(bert, rename)
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} < load_file(bert / "model.safetensors").keys()
    found = load_fill_mask(bert)[0].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    vit = tmp_path / "vit"
    ViTForImageClassification.from_pretrained(save_dino(vit)).save_pretrained(tmp_path / "classifier")
    images = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_dino(tmp_path / "classifier")(images), load_dino(vit)(images))


def test_weights_may_be_split(saved, tmp_path):
    folder = shutil.copytree(saved["captioner"], tmp_path / "split")
    whole = load_captioner(folder)
    (folder / "model.safetensors").unlink()
    BlipForConditionalGeneration.from_pretrained(saved["captioner"]).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
    images = torch.rand(2, 40, 24, 3, generator=torch.Generator().manual_seed(0))
    assert caption_images(*load_captioner(folder), images) == caption_images(*whole, images)


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


def test_a_file_of_tensors_is_read_or_refused(tmp_path):
    file = tmp_path / "tensors.pth"
    with pytest.raises(OSError, match=r"tensors\.pth is missing$"):
        load_tensors(file)
    torch.save({"a": torch.ones(2), "count": torch.tensor(3)}, file)
    assert load_tensors(file).keys() == {"a", "count"}
    torch.save({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan]), "c": torch.tensor([torch.inf])}, file)
    with pytest.raises(OSError, match=r"is damaged: b \(one of 2\) holds NaN or infinite values; get it again$"):
        load_tensors(file)
    torch.save([torch.ones(2)], file)
    with pytest.raises(OSError, match="holds something else than tensors"):
        load_tensors(file)
