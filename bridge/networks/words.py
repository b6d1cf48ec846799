"""Sources of replacement words in the host's folders, BERT under the host's memory management."""

from functools import partial

from ...zerocon_core.language.prompts import ExpectedWords, Gap, RelatedWords
from ...zerocon_core.language.wordnet import WordNet
from ..files.networks import fill_mask_folder
from ..files.wordnet import wordnet_folder
from .memory import on_device


def related_words(name: str, senses: int) -> RelatedWords:
    """By a name from `wordnet_names`."""
    return RelatedWords(WordNet(wordnet_folder(name)), senses)


def expected_words(name: str) -> ExpectedWords:
    """By a name from `fill_mask_names`. The model is loaded when candidates are asked for, and released after."""
    return ExpectedWords(partial(_ranking, name))


def _ranking(name: str, gap: Gap) -> list[str]:
    # Its import of transformers takes longer than the rest of the pack, and few runs of the host need it.
    from ...zerocon_core.language.fill_mask import load_fill_mask, ranked_words

    model, tokenizer = load_fill_mask(fill_mask_folder(name))
    with on_device(model):
        return ranked_words(model, tokenizer, gap)
