"""The nodes, one file a stage of the pipeline."""

import logging

from .attention_hooked_unet import AttentionHookedUNet
from .attention_injection import AttentionInjection
from .attention_map_preview import AttentionMapPreview
from .auto_caption import AutoCaption
from .caption_encode import CaptionEncode
from .cds_optimize import CDSOptimize
from .cds_optimize_3d import CDSOptimize3D
from .ddim_invert import DDIMInvert
from .edit_direction import EditDirection, LoadEditDirection, SaveEditDirection
from .edit_mask import EditMask
from .edit_metrics import EditMetrics
from .guidance_preview import GuidancePreview
from .patchnce_guidance import PatchNCEGuidance
from .prompt_augment import PromptAugment
from .shared.schema import HAS_SPLATS
from .soft_contrastive_train import SoftContrastiveTrain
from .splats import SplatViews, ViewsToSplat
from .toy_world import ToyScene, ToyTrainingSet, ToyWorld

NODES = [
    AutoCaption,
    CaptionEncode,
    EditDirection,
    SaveEditDirection,
    LoadEditDirection,
    DDIMInvert,
    AttentionHookedUNet,
    AttentionMapPreview,
    PatchNCEGuidance,
    AttentionInjection,
    GuidancePreview,
    CDSOptimize,
    PromptAugment,
    EditMask,
    EditMetrics,
    SoftContrastiveTrain,
    ToyWorld,
    ToyScene,
    ToyTrainingSet,
]

if HAS_SPLATS:
    NODES += [SplatViews, ViewsToSplat, CDSOptimize3D]
else:
    logging.getLogger(__name__).info("ZeroCon: this ComfyUI has no splats, so the nodes that edit them are left out")
