"""Time and memory of the loops; `python -m benchmarks.speed` writes docs/speed.md.

shapes           U-Nets of SD1.5's and SDXL's depth at any size, with random weights or without contents
timing           ways of doing the same by turns, and their table
published        the loops of pix2pix-zero and CDS, written the way of their published code
guided_step      a guided step against the published one
cds              an iteration of CDS against the published one
gradient_pass    a pass with gradients against plain autograd
memory           what tensors hold at the same time, counted on the meta device
training_memory  the same for contrastive fine-tuning
"""

import zerocon_pack as zerocon_pack  # first of all: it makes `comfy` importable
