"""Sources of replacement words in the host's folders, BERT under the host's memory management."""

from functools import partial

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...zerocon_core.language.prompts import ExpectedWords, Gap, RelatedWords
from ...zerocon_core.language.wordnet import WordNet
from ..files.networks import fill_mask_folder, wordnet_folder


def related_words(name: str, senses: int) -> RelatedWords:
    """By a name from `files.wordnet_names`."""
    return RelatedWords(WordNet(wordnet_folder(name)), senses)


def expected_words(name: str) -> ExpectedWords:
    """By a name from `files.fill_mask_names`. The model is loaded when candidates are asked for, and released after."""
    return ExpectedWords(partial(_ranking, name))


def _ranking(name: str, gap: Gap) -> list[str]:
    # Its import of transformers takes longer than the rest of the pack, and few runs of the host need it.
    from ...zerocon_core.language.fill_mask import load_fill_mask, ranked_words

    model, tokenizer = load_fill_mask(fill_mask_folder(name))
    patcher = ModelPatcher(
        nn.ModuleDict({"bert": model}),  # the patcher sets its model's `device`, which transformers' models forbid
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    comfy.model_management.load_models_gpu([patcher])
    return ranked_words(model, tokenizer, gap)
