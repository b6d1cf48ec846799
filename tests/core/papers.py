"""The papers' equations in plain Python floats, which are float64, loop by loop: what the core is compared with."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Vector = list[float]
Map = list[list[float]]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def pooled(values: Map, size: int) -> Map:
    """Mean of each size x size square; what does not fill a square is left out."""
    return [
        [
            sum(values[i * size + a][j * size + b] for a in range(size) for b in range(size)) / size**2
            for j in range(len(values[0]) // size)
        ]
        for i in range(len(values) // size)
    ]


def numerical_gradient(loss: Callable[[Tensor], float], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of `loss`, coordinate by coordinate, in float64."""
    gradient = torch.zeros(at.numel(), dtype=torch.float64)
    for i in range(at.numel()):
        values = []
        for sign in (1, -1):
            moved = at.detach().double().flatten().clone()
            moved[i] += sign * step
            values.append(loss(moved.view(at.shape)))
        gradient[i] = (values[0] - values[1]) / (2 * step)
    return gradient.view(at.shape)


# PatchNCE (CUT eq. 3, CDS eq. 9)


def info_nce(anchor: list[Vector], other: list[Vector], temperature: float) -> float:
    """mean_p -log( e^{v_p.u_p/tau} / (e^{v_p.u_p/tau} + sum_{n != p} e^{v_p.u_n/tau}) ), v of the anchor, u of the other."""
    total = 0.0
    for p, v in enumerate(anchor):
        positive = math.exp(dot(v, other[p]) / temperature)
        negatives = sum(math.exp(dot(v, u) / temperature) for n, u in enumerate(other) if n != p)
        total -= math.log(positive / (positive + negatives))
    return total / len(anchor)


def unit_patches(maps: Tensor, size: int) -> list[Vector]:
    """Mean vectors of the size x size patches of a map (C, h, w), row by row, each of length 1."""
    channels = [pooled(channel, size) for channel in maps.tolist()]
    patches = []
    for i in range(len(channels[0])):
        for j in range(len(channels[0][0])):
            vector = [channel[i][j] for channel in channels]
            length = math.sqrt(dot(vector, vector))
            patches.append([value / length for value in vector])
    return patches


def contrastive_loss(
    layers: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], temperature: float, direction: Literal["cds", "cut"]
) -> float:
    """18 times the mean over layers and sizes of PatchNCE over all places; `layers` are (edited, source), each (C, h, w)."""
    terms = []
    for edited, source in layers:
        for size in sizes:
            edit, reference = unit_patches(edited, size), unit_patches(source, size)
            anchor, other = (reference, edit) if direction == "cds" else (edit, reference)
            terms.append(info_nce(anchor, other, temperature))
    return 18 * sum(terms) / len(terms)


# Cross-attention guidance (pix2pix-zero eq. 5)


def attention_distance(layers: list[tuple[Tensor, Tensor]]) -> float:
    """sum_layers 1/(2 heads) sum_heads sum_pixels,tokens (M - M_ref)^2, maps (heads, pixels, tokens) of one sample.

    2 heads: the published mean counts those of the unconditional branch too, which show nothing of the edit.
    """
    total = 0.0
    for maps, reference in layers:
        heads, pixels, tokens = maps.shape
        m, r = maps.tolist(), reference.tolist()
        for h in range(heads):
            total += sum((m[h][p][t] - r[h][p][t]) ** 2 for p in range(pixels) for t in range(tokens)) / (2 * heads)
    return total


# Edit masks (prompt augmentation eq. 2; DiffEdit step 1)


def prompt_difference(predictions: list[Tensor]) -> Map:
    """1/P sum_{i<j} |eps_i - eps_j| of predictions (C, h, w), P = K (K - 1) / 2, mean over the channels."""
    values = [prediction.tolist() for prediction in predictions]
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    channels, height, width = predictions[0].shape
    return [
        [
            sum(abs(a[c][y][x] - b[c][y][x]) for a, b in pairs for c in range(channels)) / (len(pairs) * channels)
            for x in range(width)
        ]
        for y in range(height)
    ]


def blurred(values: Map, sigma: float) -> Map:
    """Weights exp(-(dx^2 + dy^2) / (2 sigma^2)) of all places up to three sigma away in x and in y, over their sum."""
    height, width, radius = len(values), len(values[0]), round(3 * sigma)
    inside = lambda i, count: min(max(i, 0), count - 1)
    weights = {
        (dy, dx): math.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
    }
    return [
        [
            sum(w * values[inside(y + dy, height)][inside(x + dx, width)] for (dy, dx), w in weights.items())
            / sum(weights.values())
            for x in range(width)
        ]
        for y in range(height)
    ]


def binary_mask(values: Map, threshold: float, clamp: float = math.inf) -> list[list[int]]:
    """1[(D - min D) / (max D - min D) > threshold], with D cut at clamp times its mean first (diffusers' DiffEdit)."""
    flat = [value for row in values for value in row]
    ceiling = clamp * sum(flat) / len(flat)
    cut = [[min(value, ceiling) for value in row] for row in values]
    low, high = min(min(row) for row in cut), max(max(row) for row in cut)
    return [[int((value - low) / (high - low) > threshold) for value in row] for row in cut]


# Noise regularisation (pix2pix-zero section 3.1)


def autocorrelation(noise: Tensor, shifts: Iterable[int]) -> float:
    """sum over channels and levels H, H/2, ... 8 of mean(n roll(n, r, rows))^2 + mean(n roll(n, r, columns))^2.

    `shifts` gives r of each level.
    """
    remaining = iter(shifts)
    total = 0.0
    levels = [channel for sample in noise.tolist() for channel in sample]
    while True:
        height, width = len(levels[0]), len(levels[0][0])
        r = next(remaining)
        for down in (True, False):
            for n in levels:
                correlation = sum(
                    n[i][j] * (n[(i - r) % height][j] if down else n[i][(j - r) % width])
                    for i in range(height)
                    for j in range(width)
                )
                total += (correlation / (height * width)) ** 2
        if min(height, width) <= 8:
            return total
        levels = [pooled(n, 2) for n in levels]


def divergence(noise: Tensor) -> float:
    """sum over samples of var + mean^2 - 1 - log(var + 1e-7)."""
    total = 0.0
    for sample in noise.flatten(1).tolist():
        mean = sum(sample) / len(sample)
        variance = sum((value - mean) ** 2 for value in sample) / (len(sample) - 1)
        total += variance + mean**2 - 1 - math.log(variance + 1e-7)
    return total


# Contrastive fine-tuning (prompt augmentation eq. 2, 3, 4 and 7); images are lists over channels, rows and columns


def disagreement_mask(predictions: list[list[Map]], threshold: float) -> Map:
    """Eq. 2: 1 where the mean over pairs and channels of |eps_i - eps_j| is above the share `threshold` of its range, else 0."""
    count, channels, height, width = (len(predictions), len(predictions[0]), len(predictions[0][0]), len(predictions[0][0][0]))
    together = [(i, j) for i in range(count) for j in range(i + 1, count)]
    difference = [
        [
            sum(abs(predictions[i][c][y][x] - predictions[j][c][y][x]) for i, j in together for c in range(channels))
            / (len(together) * channels)
            for x in range(width)
        ]
        for y in range(height)
    ]
    low, high = min(map(min, difference)), max(map(max, difference))
    return [[float((value - low) / (high - low) > threshold) for value in row] for row in difference]


def masked_distance(a: list[Map], b: list[Map], weights: Map) -> float:
    """mean over channels and pixels of (w a - w b)^2."""
    total = 0.0
    for one, other in zip(a, b, strict=True):
        for y, row in enumerate(weights):
            total += sum((w * one[y][x] - w * other[y][x]) ** 2 for x, w in enumerate(row))
    return total / (len(a) * len(weights) * len(weights[0]))


def dissimilarity(images: list[list[Map]], mask: Map, softness: Callable[[int, int], float], margin: float) -> float:
    """Eq. 3 and 7: -mean_{i<j} s_ij min(d(M z_i, M z_j), margin * mean M), for one sample."""
    area = sum(map(sum, mask)) / (len(mask) * len(mask[0]))
    terms = [
        softness(i, j) * min(masked_distance(images[i], images[j], mask), margin * area)
        for i in range(len(images))
        for j in range(i + 1, len(images))
    ]
    return -sum(terms) / len(terms)


def preservation(images: list[list[Map]], source: list[Map], mask: Map) -> float:
    """Eq. 4: mean_{i<j} d((1-M) z_i, (1-M) z_j) + mean_i d((1-M) z_i, (1-M) z_0), for one sample."""
    kept = [[1 - value for value in row] for row in mask]
    between = [masked_distance(images[i], images[j], kept) for i in range(len(images)) for j in range(i + 1, len(images))]
    to_source = [masked_distance(image, source, kept) for image in images]
    return sum(between) / len(between) + sum(to_source) / len(to_source)


def cosine_distance(a: Vector, b: Vector) -> float:
    return 1 - dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
