"""The toy world as a test bed: held-out edits whose true result the renderer knows, the methods, and their scores.

edits      what is to be edited, and into what
bench      the toy world's models, and what methods share about a batch of edits
methods    each a value that is called with a batch and returns the edited latents
elsewhere  CDS with its loss in other places
score      how good the edited images are

Toy figures compare methods and settings of this code with each other; they say nothing about Stable Diffusion.
"""

import zerocon_pack as zerocon_pack  # first of all: it makes `comfy` importable
