"""A tiny BERT with random weights, as transformers saves it."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a the cat dog bird red green blue on under mat hat with and of in yellow circle square café x".split()
PIECES = "##s ##ing 7 2004 , . ##a b2 n't".split()
VOCABULARY = SPECIAL + WORDS + PIECES


def write_bert(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=12, strip_accents=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, initializer_range=1.0,
    )  # fmt: skip
    BertForMaskedLM(config).half().save_pretrained(folder)
    return folder
