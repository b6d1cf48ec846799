import torch
from comfy_api.latest import io, ui

from ..bridge.files.folders import OFF
from ..bridge.files.networks import fill_mask_names
from ..bridge.files.wordnet import wordnet_names
from ..bridge.model.conditioning import SentenceEncoder
from ..bridge.networks.words import expected_words, related_words
from ..zerocon_core.language.prompts import (
    Augmentation,
    Source,
    ToyWords,
    WordList,
    choose_gap,
    gap_at,
    gather,
    random_prompts,
    spread_prompts,
)
from ..zerocon_core.language.text import lines, listed
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases

SOFT, RANDOM = "soft", "random"


class PromptAugment(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConPromptAugment",
            display_name="Prompt Augment",
            category="ZeroCon",
            **search_aliases("synonyms", "WordNet", "BERT", "prompt variations"),
            description="Makes several target prompts of a caption by replacing one of its words.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input("caption", multiline=True, tooltip="What the source image shows, by hand or from Auto Caption."),
                io.String.Input(
                    "word", default="",
                    tooltip="The word or phrase of the caption to replace. Empty: a random one that the sources know.",
                ),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many prompts to make."),
                io.Combo.Input(
                    "selection", options=[SOFT, RANDOM],
                    tooltip="soft: words at spread-out distances from the caption, measured with the CLIP. random: any.",
                ),
                io.Combo.Input(
                    "wordnet", options=wordnet_names(),
                    tooltip="Synonyms, antonyms and co-hyponyms. installed: this machine's database (Debian, Ubuntu: package "
                    "wordnet-base). Others: folders in models/wordnet.",
                ),
                io.Int.Input(
                    "senses", default=1, min=1, max=20, tooltip="How many meanings of the word WordNet follows, commonest first."
                ),
                io.Combo.Input(
                    "bert", options=fill_mask_names(),
                    tooltip="Words that BERT expects in the gap. google-bert/...: downloaded on the first run (base 440 MB, "
                    "large 1.3 GB). Others: folders in models/fill_mask.",
                ),
                io.String.Input(
                    "words", default="", multiline=True,
                    tooltip="Replacements of your own, with commas or one a line. They replace the one of them that the caption "
                    "holds, or the word above.",
                ),
                io.Boolean.Input(
                    "toy_words", default=False, tooltip="The toy world's words: colours for a colour, shapes for a shape."
                ),
                io.Int.Input("pool", default=20, min=1, max=1000, tooltip="How many words each source offers, its best first."),
                io.Boolean.Input("include_caption", default=False, tooltip="Puts the caption itself before the prompts."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For the random choice of the word, and of the prompts with random selection.",
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="Measures how far a prompt is from the caption. Needed for soft selection; best that of your model.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompts", display_name="prompts", is_output_list=True,
                    tooltip="The target prompts: a node behind it, such as CLIP Text Encode, runs once for each.",
                ),
                io.String.Output("replaced", display_name="replaced", tooltip="The word of the caption that was replaced."),
                io.String.Output(
                    "new_words", display_name="new_words", is_output_list=True, tooltip="What stands in its place in each prompt."
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="Distance from the caption, new word and prompt, one prompt a line."
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, caption, word, count, selection, wordnet, senses, bert, words, toy_words, pool, include_caption, seed, clip=None
    ) -> io.NodeOutput:  # fmt: skip
        caption, word = caption.strip(), word.strip()
        if not caption:
            raise ValueError("the caption is empty; connect Auto Caption or write what the image shows")
        if len(lines(caption)) > 1:
            raise ValueError(
                f"there are {len(lines(caption))} captions, a line each, and it takes one; put Rebatch Images with a batch_size "
                "of 1 before Auto Caption, which takes image by image"
            )
        if selection == SOFT and clip is None:
            raise ValueError("soft selection measures with a CLIP; connect that of your model, or choose random")
        encoder = None if clip is None else SentenceEncoder(clip)
        generator = torch.Generator().manual_seed(seed)
        sources = _word_sources(words, toy_words, wordnet, senses, bert)
        if word:
            gap = gap_at(caption, word)
            candidates = gather(gap, sources, pool)
        else:
            gap, candidates = choose_gap(caption, sources, count, pool, generator)
        if encoder is not None:
            encoder.expect(1 + (len(candidates) if selection == SOFT else count))
        if selection == SOFT:
            found = spread_prompts(gap, candidates, count, encoder)
        else:
            found = random_prompts(gap, candidates, count, generator, encoder)
        if encoder is not None and encoder.cut:
            warn(cls, f'the caption is longer than the text encoder reads; cut off: "{encoder.cut[0]}"')
        if include_caption:
            found = [Augmentation(caption, gap.word, None if clip is None else 0.0), *found]
        table = "\n".join(map(_line, found))
        return io.NodeOutput([f.prompt for f in found], gap.word, [f.word for f in found], table, ui=ui.PreviewText(table))


def _word_sources(words: str, toy_words: bool, wordnet: str, senses: int, bert: str) -> list[Source]:
    """What was chosen, in the order in which the sources may decide which word is replaced."""
    own = listed(words)
    sources = [
        *([WordList(own)] if own else []),
        *([ToyWords()] if toy_words else []),
        *([related_words(wordnet, senses)] if wordnet != OFF else []),
        *([expected_words(bert)] if bert != OFF else []),
    ]
    if not sources:
        raise ValueError("no source of words is chosen; choose wordnet or bert, switch toy_words on, or write words of your own")
    return sources


def _line(found: Augmentation) -> str:
    """A line of the table: distance (if measured), new word, prompt."""
    distance = [] if found.distance is None else [f"{found.distance:.4f}"]
    return "  ".join([*distance, found.word, found.prompt])
