"""Agreement of image and text in CLIP's space (Radford et al. 2021). All features are unit vectors, one a row."""

from torch import Tensor
from torch.nn import functional as F


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each image and its text, (B,): torchmetrics' and PIE-Bench's scale.

    CLIPScore as Hessel et al. (2021) define it is 2.5 times that; figures of 70 to 80 in papers are of this kind.
    """
    return 100.0 * F.cosine_similarity(images, texts).clamp(min=0.0)


def clip_accuracy(images: Tensor, source_texts: Tensor, target_texts: Tensor) -> Tensor:
    """1 where an edited image is closer to its target text than to its source text, else 0 (Parmar et al. 2023), (B,)."""
    return (F.cosine_similarity(images, target_texts) > F.cosine_similarity(images, source_texts)).float()


def directional_similarity(source: Tensor, edited: Tensor, source_texts: Tensor, target_texts: Tensor) -> Tensor:
    """Cosine between the move of the image and the move of the text (Gal et al. 2022), (B,). 0 if either did not move."""
    return F.cosine_similarity(edited - source, target_texts - source_texts)


def r_precision(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP-R-precision with R = 1 (Park et al. 2021), (B,): 1 where no other text is closer to image i than text i is, else 0.

    The more texts there are, the harder it is: figures compare only for the same texts.
    """
    similarity = images @ texts.T
    return (similarity.diagonal() >= similarity.amax(1)).float()
