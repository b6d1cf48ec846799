"""The nodes, one file a stage of the pipeline."""

from .attention_hooked_unet import AttentionHookedUNet
from .attention_injection import AttentionInjection
from .attention_map_preview import AttentionMapPreview
from .auto_caption import AutoCaption
from .cds_optimize import CDSOptimize
from .ddim_invert import DDIMInvert
from .edit_direction import EditDirection, LoadEditDirection, SaveEditDirection
from .edit_mask import EditMask
from .edit_metrics import EditMetrics
from .guidance_preview import GuidancePreview
from .patchnce_guidance import PatchNCEGuidance
from .prompt_augment import PromptAugment
from .soft_contrastive_train import SoftContrastiveTrain
from .toy_world import ToyScene, ToyTrainingSet, ToyWorld

NODES = [
    AutoCaption,
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
