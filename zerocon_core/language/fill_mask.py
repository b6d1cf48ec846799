"""Words that a masked language model of BERT's kind (Devlin et al. 2019) expects in a gap, loaded in transformers' format."""

from pathlib import Path

import torch
from transformers import BertForMaskedLM, BertTokenizer

from ..pretrained import load_network, load_tokenizer
from .prompts import Gap

CONTINUATION = "##"
"""Begins the pieces of BERT's vocabulary that continue a word."""
UNUSED = ("bert.pooler.", "cls.seq_relationship.")
"""Published BERTs hold what guesses whether two sentences belong together."""


def load_fill_mask(folder: str | Path) -> tuple[BertForMaskedLM, BertTokenizer]:
    """Model (float32, on the CPU) and tokenizer from a local `folder`. Raises OSError if that holds no whole BERT."""
    model = load_network(BertForMaskedLM, folder, "BERT model", UNUSED)
    tokenizer = load_tokenizer(BertTokenizer, folder, "BERT model", model)
    if tokenizer.mask_token is None or not any(piece.startswith(CONTINUATION) for piece in tokenizer.get_vocab()):
        raise OSError(f"{folder} holds another kind of model than BERT: its vocabulary has no mask or no word pieces")
    return model, tokenizer


@torch.no_grad()
def ranked_words(model: BertForMaskedLM, tokenizer: BertTokenizer, gap: Gap) -> list[str]:
    """The vocabulary's whole words of two letters and more, the likeliest in the gap first."""
    inputs = tokenizer(f"{gap.before}{tokenizer.mask_token}{gap.after}", truncation=True, return_tensors="pt").to(model.device)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if not len(places):
        raise ValueError(f'the BERT model reads {tokenizer.model_max_length} tokens of the caption, and "{gap.word}" comes later')
    ranking = model(**inputs).logits[0, places[0, 0]].argsort(descending=True, stable=True)
    pieces = tokenizer.convert_ids_to_tokens(ranking.tolist())
    return [piece for piece in pieces if piece.isalpha() and len(piece) > 1]
