from comfy_api.latest import io

from ..bridge.files.directions import direction_names, load_direction, save_direction
from ..bridge.model.conditioning import SentenceEncoder, encode_captions, shift_conditioning
from ..bridge.status import say
from ..zerocon_core.language.directions import TEMPLATES, edit_directions, paired_sentences, phrases
from ..zerocon_core.language.text import find_phrase, lines
from .shared.checks import check_encoded
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.types import Direction


class EditDirection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConEditDirection",
            display_name="Edit Direction",
            category="ZeroCon",
            **search_aliases("pix2pix-zero", "prompt difference", "translate image"),
            description="Finds the direction of an edit in the text encoder's space from a caption and two phrases.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that edits."),
                io.String.Input(
                    "caption", multiline=True,
                    tooltip="What the source image shows, by hand or from Auto Caption. For a "
                    "batch of images a line each.",
                ),
                io.String.Input("edit_from", tooltip='What shall change, such as "a cat". Empty: the whole caption.'),
                io.String.Input(
                    "edit_to",
                    tooltip='What it shall become, such as "a dog". Empty: the phrase above is removed from the caption.',
                ),
                io.String.Input(
                    "bank", default="", multiline=True,
                    tooltip='Sentences to average over, one a line: "a photo of {}" or "a cat on a mat => a dog on a mat". '
                    f"Empty: {len(TEMPLATES)} templates of ours.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="Factor on the direction. 0 leaves the source as it is, above 1 exaggerates.",
                ),
                Direction.Input(
                    "direction", optional=True, tooltip="A loaded direction to use instead of the phrases and the bank."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "source", display_name="source", tooltip="The caption: for DDIM Invert and PatchNCE Guidance."
                ),
                io.Conditioning.Output(
                    "edited", display_name="edited", tooltip="The caption moved along the direction: for PatchNCE Guidance."
                ),
                Direction.Output(
                    "found_direction", display_name="found_direction", tooltip="The direction alone, for Save Edit Direction."
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, clip, caption, edit_from, edit_to, bank, strength, direction=None) -> io.NodeOutput:
        captions = lines(caption)
        if not captions:
            raise ValueError("the caption is empty; connect Auto Caption or write what the image shows")
        if len(captions) > 1:
            say(cls.hidden.unique_id, f"{len(captions)} captions, for as many images in one batch")
        encoder = SentenceEncoder(clip)
        if direction is None:
            sentences = bank.splitlines() if bank.strip() else TEMPLATES
            banks = [paired_sentences(*phrases(caption, edit_from, edit_to), sentences) for caption in captions]
            if all(bank == banks[0] for bank in banks):
                banks = banks[:1]
            encoder.expect(sum(len(side) for bank in banks for side in bank))
            direction = edit_directions(encoder, banks)
            for caption in captions:
                if edit_from.strip() and find_phrase(caption, edit_from.strip()) is None:
                    warn(cls, f'the caption "{caption}" does not contain "{edit_from}"; the edit may miss what it is meant for')
        if not direction.tokens.flatten(1).any(1).all():
            warn(cls, "the direction is zero, so nothing will change: the text encoder sees no difference between the phrases")
        source = encode_captions(clip, captions)
        edited = shift_conditioning(source, direction, strength)
        check_encoded(edited)
        for text in encoder.cut:
            warn(cls, f'a sentence is longer than the text encoder reads; cut off: "{text}"')
        return io.NodeOutput(source, edited, direction)


class SaveEditDirection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConSaveEditDirection",
            display_name="Save Edit Direction",
            category="ZeroCon",
            **search_aliases("export direction"),
            description="Saves a direction as safetensors, to be used again with Load Edit Direction.",
            is_output_node=True,
            inputs=[
                Direction.Input("direction", tooltip="The found_direction output of Edit Direction."),
                io.String.Input("filename_prefix", default="directions/zerocon", tooltip="Under the output folder."),
            ],
            outputs=[],
        )

    @classmethod
    @refusing
    def execute(cls, direction, filename_prefix) -> io.NodeOutput:
        return io.NodeOutput(ui={"text": [save_direction(direction, filename_prefix)]})


class LoadEditDirection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConLoadEditDirection",
            display_name="Load Edit Direction",
            category="ZeroCon",
            **search_aliases("import direction"),
            description="Loads a direction from models/edit_directions or from output/directions.",
            inputs=[
                io.Combo.Input("name", options=direction_names(), tooltip="A safetensors file of Save Edit Direction."),
            ],
            outputs=[Direction.Output("direction", display_name="direction", tooltip="For Edit Direction.")],
        )

    @classmethod
    @refusing
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(load_direction(name))
