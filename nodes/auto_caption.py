from comfy_api.latest import io

from ..bridge.files.networks import captioner_names
from ..bridge.networks.captioner import caption
from ..bridge.status import say
from .shared.checks import check_images
from .shared.refusals import refusing
from .shared.schema import search_aliases


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAutoCaption",
            display_name="Auto Caption",
            category="ZeroCon",
            **search_aliases("blip", "image to text", "describe image"),
            description="Describes images in words, one caption an image.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Combo.Input(
                    "captioner", options=captioner_names(),
                    tooltip="toy world: bundled, for the toy world's images only. Salesforce/...: downloaded on the first run "
                    "(base 1 GB, large 2 GB). Others: folders in models/captioners.",
                ),
                io.String.Input(
                    "prefix", default="", tooltip='Words the caption shall begin with, such as "a photo of". May be empty.'
                ),
            ],
            outputs=[
                io.String.Output(
                    "caption", display_name="caption",
                    tooltip="One caption an image of the batch, a line each: for Edit Direction or Caption Encode, which give "
                    "each image its own.",
                )
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, image, captioner, prefix) -> io.NodeOutput:
        check_images("the image", image)
        captions = [" ".join(text.split()) for text in caption(image, captioner, prefix)]
        if len(captions) > 1:
            if not all(captions):
                raise ValueError(
                    f"the captioner found no words for image {captions.index('') + 1} of {len(captions)}; choose another, or "
                    "write the captions by hand, a line an image"
                )
            say(cls.hidden.unique_id, f"{len(captions)} captions, a line each: for Edit Direction or Caption Encode")
        return io.NodeOutput("\n".join(captions), ui={"text": captions})
