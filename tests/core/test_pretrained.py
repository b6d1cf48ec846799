"""What is loaded from a folder is the whole network that was asked for, or a sentence says why not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bert_files import write_bert
from network_folders import KINDS, configure, network
from safetensors.torch import load_file, save_file
from tiny_networks import save_blip, save_dino
from torch import Tensor
from transformers import (
    BertForPreTraining,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    ViTForImageClassification,
)

from zerocon_core.language.captioning import caption_images, load_captioner
from zerocon_core.language.fill_mask import load_fill_mask
from zerocon_core.metrics.networks import load_dino
from zerocon_core.pretrained import load_tensors


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """`edit` the tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


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
