import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..bridge.loops.word_maps import attention_maps
from ..bridge.model.attention import hooked_layers
from ..bridge.model.conditioning import pieces_of, prompt_tokens
from ..bridge.model.facts import HookedLayers, all_cross_attention, pixels_per_position
from ..zerocon_core.drawing import heat_grids
from ..zerocon_core.language.text import lines, listed
from ..zerocon_core.language.tokens import Token
from ..zerocon_core.maps.words import Word, find_words, heat_of_words, name_tokens, normalize, resize
from .shared.checks import check_conditionings, check_images, check_latent
from .shared.inputs import shortened, whole_numbers
from .shared.models import check_image_model
from .shared.refusals import refusing
from .shared.schema import search_aliases


class AttentionMapPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAttentionMapPreview",
            display_name="Attention Map Preview",
            category="ZeroCon",
            **search_aliases("cross attention map", "DAAM", "word heat map"),
            description="Shows where in an image the model sees each word of a prompt: the cross-attention maps that PatchNCE "
            "Guidance holds to the source.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x or SDXL. With Attention Hooked U-Net before it, its cross-attention layers are read; "
                    "without, all.",
                ),
                io.Latent.Input("image_latent", tooltip="The encoded image."),
                io.Conditioning.Input("conditioning", tooltip="The prompt to look at."),
                io.String.Input(
                    "prompt", default="",
                    tooltip="The words of the conditioning, a line each where every image has its own. Needed, with the CLIP, to "
                    "know which token is which word.",
                ),
                io.String.Input(
                    "words", default="",
                    tooltip='Words or phrases of the prompt to show, such as "cat, wooden door". Without words and tokens: all.',
                ),
                io.String.Input(
                    "tokens", default="",
                    tooltip='Numbers of tokens to show, such as "2, 5". 0 is the start of the prompt. Works without a CLIP.',
                ),
                io.Float.Input(
                    "strength", default=0.5, min=0.01, max=1.0, step=0.05, round=0.001,
                    tooltip="How much noise the image gets before the model looks at it, as the denoise of a sampler.",
                ),
                io.Float.Input(
                    "opacity", default=0.6, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="How strongly the colours cover the image. No effect without an image.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="For the noise."),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP that encoded the prompt."),
                io.Image.Input("image", optional=True, tooltip="The image to lay the maps over. Without it, the maps alone."),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="picture",
                    tooltip="One picture for each image: the map of every word with its share of all attention.",
                ),
                io.Mask.Output(
                    "maps", display_name="maps",
                    tooltip="The maps themselves from 0 to 1, in the size of the image: all words of the first image, then of "
                    "the next.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, model, image_latent, conditioning, prompt, words, tokens, strength, opacity, seed, clip=None, image=None
    ) -> io.NodeOutput:
        samples = image_latent["samples"]
        layers = hooked_layers(model) or all_cross_attention(model.get_model_object("diffusion_model"))
        check(model, samples, layers, image)
        check_conditionings(model, samples, given=conditioning)
        prompts = prompts_of(prompt, conditioning, words, tokens) if clip is not None and prompt.strip() else []
        prompted = [prompt_tokens(clip, text) for text in prompts] or [[]]
        prompted *= len(samples) // len(prompted)
        asked = [[*words_of(own, words, clip), *name_tokens(parse_numbers(tokens), own)] for own in prompted]
        maps = attention_maps(model, samples, conditioning, layers, strength, seed)
        labels, heat = [], []
        for one, own, chosen in zip(maps.split(1), prompted, asked, strict=True):
            check_positions(chosen, own, maps.shape[1])
            shown = chosen or name_tokens([token.position for token in own] or range(maps.shape[1]), own)
            found, [shares] = heat_of_words(one, shown)
            heat.append(normalize(found))
            labels.append([f"{word.name}  {share:.1%}" for word, share in zip(shown, shares.tolist(), strict=True)])
        heat = torch.cat(heat)
        size = [side * pixels_per_position(model) for side in samples.shape[-2:]] if image is None else image.shape[1:3]
        picture = heat_grids(heat, labels, size, image, opacity)
        return io.NodeOutput(picture, resize(heat, size).flatten(0, 1), ui=ui.PreviewImage(picture))


def check(model, samples: Tensor, layers: HookedLayers, image: Tensor | None) -> None:
    check_image_model(model)
    if not layers.cross_attention:
        raise ValueError(
            f"no cross-attention layer of {type(model.model).__name__} is read; choose layers in Attention Hooked U-Net, or use "
            "an SD1.x, SD2.x or SDXL model"
        )
    check_latent(samples, model)
    if image is None:
        return
    check_images("the image", image)
    (count, height, width), (rows, columns) = image.shape[:3], samples.shape[-2:]
    if count not in (1, len(samples)) or not 0.9 < (width * rows) / (height * columns) < 1.1:
        raise ValueError(
            f"the image is {count} of {width}x{height}, the latent {len(samples)} of {columns}x{rows}; connect the image that "
            "the latent was encoded from"
        )


def prompts_of(prompt: str, conditioning: list, words: str, tokens: str) -> list[str]:
    """The text of the conditioning: one for all images or, where each has its own, a line each."""
    count = max(len(embeddings) for embeddings, _ in conditioning)
    if count == 1:
        return [prompt]
    if len(lines(prompt)) != count:
        raise ValueError(
            f"prompt has {len(lines(prompt))} lines and the conditioning a prompt for each of {count} images; write as many"
        )
    if not (words.strip() or tokens.strip()):
        raise ValueError("each image has a prompt of its own; write into words or tokens what to show of all of them")
    return lines(prompt)


def words_of(prompted: list[Token], words: str, clip) -> list[Word]:
    """The words and phrases of a comma-separated list among the tokens of the prompt."""
    phrases = listed(words)
    if phrases and not prompted:
        raise ValueError(
            f'"{", ".join(phrases)}" cannot be found in the conditioning, which holds no words; connect the CLIP and write the '
            "prompt, or give numbers in tokens"
        )
    if len(phrases) > len(prompted):
        raise ValueError(f"words holds {len(phrases)} words or phrases and the prompt {len(prompted)} tokens; choose fewer")
    return find_words([(phrase, pieces_of(clip, phrase)) for phrase in phrases], prompted)


def parse_numbers(tokens: str) -> list[int]:
    numbers = whole_numbers(tokens)
    if numbers is None:
        raise ValueError(f'tokens is "{shortened(tokens)}"; it needs whole numbers from 0, such as "2, 5"')
    return numbers


def check_positions(asked: list[Word], prompted: list[Token], count: int) -> None:
    last = max([*(position for word in asked for position in word.positions), *(token.position for token in prompted)], default=0)
    if last >= count:
        raise ValueError(
            f"there is no token {last}, the conditioning has 0 to {count - 1}; give smaller numbers in tokens, and as prompt the "
            "text of the conditioning"
        )
