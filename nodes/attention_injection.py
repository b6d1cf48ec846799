import math
from collections.abc import Mapping

from comfy_api.latest import io

from ..bridge.loops.injection import BlendWords, InjectionGuider
from ..bridge.model.conditioning import pieces_of, prompt_tokens
from ..bridge.model.injection import EDITED, SOURCE
from ..zerocon_core.language.text import listed
from ..zerocon_core.language.tokens import Token, places_of, spelled
from ..zerocon_core.maps.words import find_words
from ..zerocon_core.methods.injection import MasaCtrl, Method, PlugAndPlay, PromptToPrompt, WordEdit
from .shared.checks import check_conditionings, check_mask
from .shared.inputs import align_input
from .shared.models import check_image_model
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.types import Trajectory

REPLACE, REFINE, PLUG_AND_PLAY, MASACTRL = "prompt-to-prompt replace", "prompt-to-prompt refine", "plug-and-play", "MasaCtrl"


class AttentionInjection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAttentionInjection",
            display_name="Attention Injection",
            category="ZeroCon",
            **search_aliases("prompt-to-prompt", "P2P", "plug-and-play", "PnP", "MasaCtrl", "direct inversion"),
            description="Holds an edit to its source without gradients: the edit takes over attention or features that the model "
            "computes of the source beside it.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="SD1.x, SD2.x or SDXL: the model that inverted."),
                io.Conditioning.Input("source", tooltip="What the source image shows; the condition it was inverted with."),
                io.Conditioning.Input("edited", tooltip="What the result shall show: a prompt, or edited of Edit Direction."),
                io.Conditioning.Input("negative", tooltip="What CFG pushes away from."),
                Trajectory.Input("trajectory", tooltip="The trajectory output of DDIM Invert."),
                io.Combo.Input(
                    "method", options=[REPLACE, REFINE, PLUG_AND_PLAY, MASACTRL], default=PLUG_AND_PLAY,
                    tooltip="prompt-to-prompt replace: words swapped one for one. refine: words added or left out. "
                    "plug-and-play: the layout stays. MasaCtrl: the texture stays, pose and shape change.",
                ),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="CFG scale (papers: 7.5)."),
                io.Float.Input(
                    "cross_steps", default=0.8, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="Prompt-to-prompt: for which share of the steps the source's cross-attention maps are injected "
                    "(published: 0.8).",
                ),
                io.Float.Input(
                    "self_steps", default=0.4, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="Prompt-to-prompt: the same for the maps of self-attention at coarse layers (published: 0.4).",
                ),
                io.Float.Input(
                    "attention_steps", default=0.5, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="Plug-and-play: for which share of the steps the source's self-attention maps are injected "
                    "(published: 0.5).",
                ),
                io.Float.Input(
                    "feature_steps", default=0.8, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="Plug-and-play: the same for the features of a residual block (published: 0.8).",
                ),
                io.Float.Input(
                    "masactrl_start", default=0.08, min=0.0, max=1.0, step=0.02, round=0.001,
                    tooltip="MasaCtrl: after which share of the steps the edit looks into the source (published: step 4 of 50). "
                    "1 is never.",
                ),
                io.String.Input(
                    "source_prompt", default="",
                    tooltip="The words of source. Needed, with the CLIP, for refine, reweight and blend_words.",
                ),
                io.String.Input(
                    "edited_prompt", default="",
                    tooltip="The words of edited. For the edited output of Edit Direction: the caption once more.",
                ),
                io.String.Input(
                    "reweight", default="",
                    tooltip='Prompt-to-prompt: factors on words of the edited prompt, such as "fluffy: 3, red door: 0.5".',
                ),
                io.String.Input(
                    "blend_words", default="",
                    tooltip='Words of either prompt, such as "cat, dog": outside of where the model sees them, each step puts '
                    "the source back. Empty: nowhere.",
                ),
                io.Float.Input(
                    "blend_threshold", default=0.3, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="From which share of its highest value a word's map counts as inside (published: 0.3).",
                ),
                align_input(),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP that encoded the prompts."),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the edit is free: outside, each step puts the inverted source back. From Edit Mask or drawn.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="For SamplerCustomAdvanced, with euler or ddim as sampler."
                )
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, model, source, edited, negative, trajectory, method, cfg, cross_steps, self_steps, attention_steps, feature_steps,
        masactrl_start, source_prompt, edited_prompt, reweight, blend_words, blend_threshold, align, clip=None, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_image_model(model)
        check_conditionings(model, None, source=source, edited=edited, negative=negative)
        if mask is not None:
            check_mask(mask)
        methods: dict[str, Method] = {
            PLUG_AND_PLAY: PlugAndPlay(attention_steps, feature_steps), MASACTRL: MasaCtrl(masactrl_start)
        }  # fmt: skip
        chosen = methods.get(method, PromptToPrompt(cross_steps, self_steps))
        prompts = Prompts(clip, source_prompt, edited_prompt, source, edited)
        words = None
        if method in (REPLACE, REFINE):
            words = word_edit(method, prompts, factors(prompts, reweight))
        elif reweight.strip():
            warn(cls, f"reweight has no effect with {method}; choose a prompt-to-prompt method")
        blend = BlendWords(blend_places(prompts, blend_words), blend_threshold) if blend_words.strip() else None
        guider = InjectionGuider(model, trajectory, chosen, words, blend, mask, align)
        guider.inner_set_conds({"positive": edited, "negative": negative, "source": source})
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class Prompts:
    """The words of both conditionings."""

    def __init__(self, clip, source_prompt: str, edited_prompt: str, source: list, edited: list):
        self.clip = clip
        self.texts = {SOURCE: source_prompt, EDITED: edited_prompt}
        self.counts = {SOURCE: source[0][0].shape[1], EDITED: edited[0][0].shape[1]}

    @property
    def known(self) -> bool:
        return self.clip is not None and all(text.strip() for text in self.texts.values())

    def tokens(self, wanted_by: str) -> dict[str, list[Token]]:
        """The tokens of either prompt. Raises ValueError where they are not known, or are not those of the conditionings."""
        if not self.known:
            raise ValueError(
                f"{wanted_by} needs the words of the conditionings, which hold none; connect the CLIP and write source_prompt "
                "and edited_prompt"
            )
        found = {side: prompt_tokens(self.clip, text) for side, text in self.texts.items()}
        for side, tokens in found.items():
            if tokens and tokens[-1].position >= self.counts[side]:
                raise ValueError(
                    f"{'source' if side == SOURCE else 'edited'}_prompt has a token {tokens[-1].position}, its conditioning 0 to "
                    f"{self.counts[side] - 1}; write the text that the conditioning was made of"
                )
        return found

    @property
    def count(self) -> int:
        """How many tokens the embeddings of both have. Raises ValueError where these are two numbers."""
        source, edited = self.counts.values()
        if source != edited:
            raise ValueError(
                f"the source conditioning has {source} tokens and the edited one {edited}; shorten the longer prompt until both "
                "fill as many windows of the text encoder, or choose plug-and-play or MasaCtrl"
            )
        return source


def word_edit(method: str, prompts: Prompts, factors: Mapping[int, float]) -> WordEdit:
    if method == REFINE:
        tokens = prompts.tokens(method)
        return WordEdit.refine(prompts.count, tokens[SOURCE], tokens[EDITED], factors)
    if prompts.known:
        source, edited = (len(tokens) for tokens in prompts.tokens(method).values())
        if source != edited:
            raise ValueError(
                f"source_prompt has {source} tokens and edited_prompt {edited}, which cannot be swapped one for one; choose "
                f"{REFINE}"
            )
    return WordEdit.replace(prompts.count, factors)


def factors(prompts: Prompts, reweight: str) -> dict[int, float]:
    """Factors by the places of the tokens that they are for."""
    items = listed(reweight)
    tokens = prompts.tokens("reweight")[EDITED] if items else []
    found: dict[int, float] = {}
    for item in items:
        phrase, _, number = item.replace("：", ":").rpartition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not (phrase.strip() and math.isfinite(factor)):
            raise ValueError(f'reweight has "{item}"; it needs words with their factors, such as "fluffy: 3, red door: 0.5"')
        [word] = find_words([(phrase.strip(), pieces_of(prompts.clip, phrase))], tokens)
        found |= dict.fromkeys(word.positions, factor)
    return found


def blend_places(prompts: Prompts, blend_words: str) -> dict[str, list[int]]:
    """The places of the words in either prompt."""
    tokens = prompts.tokens("blend_words")
    places: dict[str, list[int]] = {side: [] for side in tokens}
    for phrase in listed(blend_words):
        spelling = spelled(pieces_of(prompts.clip, phrase))
        here = {side: [*places_of(spelling, tokens[side])] for side in tokens} if spelling else {}
        if not any(here.values()):
            raise ValueError(
                f'neither prompt contains "{phrase}" of blend_words; choose from "{prompts.texts[SOURCE]}" and '
                f'"{prompts.texts[EDITED]}"'
            )
        for side, found in here.items():
            places[side] += found
    return places
