"""Link types of this pack."""

from comfy_api.latest import io

Trajectory = io.Custom("ZEROCON_TRAJECTORY")
"""zerocon_core.methods.inversion.Trajectory: the latents an inversion passed through, on the CPU in the model's latent space."""

Direction = io.Custom("ZEROCON_DIRECTION")
"""zerocon_core.language.directions.EditDirection."""

Cameras = io.Custom("ZEROCON_CAMERAS")
"""bridge.splats.Cameras: the cameras that look at a splat, and the size of their pictures."""
