"""Prompt-to-Prompt's published alignment of prompts and its local blend, as its code has them (seq_aligner.py, the notebook)."""

import numpy as np
import torch
import torch.nn.functional as nnf


def traceback(x, y):
    gap, match, mismatch = 0, 1, -1
    matrix = np.zeros((len(x) + 1, len(y) + 1), dtype=np.int32)
    matrix[0, 1:] = (np.arange(len(y)) + 1) * gap
    matrix[1:, 0] = (np.arange(len(x)) + 1) * gap
    trace_back = np.zeros((len(x) + 1, len(y) + 1), dtype=np.int32)
    trace_back[0, 1:] = 1
    trace_back[1:, 0] = 2
    trace_back[0, 0] = 4
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            left = matrix[i, j - 1] + gap
            up = matrix[i - 1, j] + gap
            diag = matrix[i - 1, j - 1] + (match if x[i - 1] == y[j - 1] else mismatch)
            matrix[i, j] = max(left, up, diag)
            if matrix[i, j] == left:
                trace_back[i, j] = 1
            elif matrix[i, j] == up:
                trace_back[i, j] = 2
            else:
                trace_back[i, j] = 3
    return trace_back


def mapper_y_to_x(x, y):
    trace_back, i, j, found = traceback(x, y), len(x), len(y), []
    while i > 0 or j > 0:
        if trace_back[i, j] == 3:
            i, j = i - 1, j - 1
            found.append((j, i))
        elif trace_back[i, j] == 1:
            j = j - 1
            found.append((j, -1))
        elif trace_back[i, j] == 2:
            i = i - 1
        elif trace_back[i, j] == 4:
            break
    found.reverse()
    return torch.tensor(found, dtype=torch.int64)


def refinement_mapper(x_seq, y_seq, max_len=77):
    """`x_seq` and `y_seq` with the tokens that start and end a prompt."""
    base = mapper_y_to_x(x_seq, y_seq)
    alphas = torch.ones(max_len)
    alphas[: base.shape[0]] = base[:, 1].ne(-1).float()
    mapper = torch.zeros(max_len, dtype=torch.int64)
    mapper[: base.shape[0]] = base[:, 1]
    mapper[base.shape[0] :] = len(y_seq) + torch.arange(max_len - len(y_seq))
    return mapper, alphas


def blend_mask(maps, alpha_layers, size, threshold=0.3):
    """`maps` (prompts, layers * heads, 1, h, w, words) summed over the steps, `alpha_layers` (prompts, 1, 1, 1, 1, words)."""
    k = 1
    maps = (maps * alpha_layers).sum(-1).mean(1)
    mask = nnf.max_pool2d(maps, (k * 2 + 1, k * 2 + 1), (1, 1), padding=(k, k))
    mask = nnf.interpolate(mask, size=size)
    mask = mask / mask.max(2, keepdims=True)[0].max(3, keepdims=True)[0]
    mask = mask.gt(threshold)
    return (mask[:1] + mask[1:]).float()
