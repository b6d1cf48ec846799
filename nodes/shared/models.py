"""What several nodes refuse of a model."""

from ...bridge.model.facts import is_video_unet, latent_dimensions


def check_image_model(model) -> None:
    """Raises ValueError, with what the model is, for one whose latents are no images."""
    name, dimensions = type(model.model).__name__, latent_dimensions(model)
    if is_video_unet(model.get_model_object("diffusion_model")):
        raise ValueError(
            f"{name} is a video model, which takes the images of a batch for the frames of one video; it needs an image model, "
            "such as SD1.x, SD2.x or SDXL"
        )
    if dimensions != 2:
        kind = {1: "sound", 3: "video"}.get(dimensions, "something else")
        raise ValueError(
            f"{name} works on latents of {dimensions} dimensions, as {kind} has them; it needs an image model, such as SD1.x, "
            "SD2.x or SDXL"
        )
