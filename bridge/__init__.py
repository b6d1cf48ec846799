"""The only code that touches the host's internals.

autograd      gradients through the host's models, whatever their weights are
attention     the hooked layers of a U-Net and what they show during a pass
inversion     the core's DDIM inversion as a host sampler
guider        the core's guided step as a host guider
word_maps     cross-attention maps of a noised image
masks         noise predictions of several prompts
finetune      low-rank adapters trained through the host's model
conditioning  sentences through the host's CLIP, edit directions on its CONDITIONING
captioner     a captioner under the host's memory management
words         sources of replacement words, BERT under the host's memory management
metrics       networks that judge edits, under the host's memory management
files         edit directions, captioners, WordNet databases, BERT models and those networks in the host's folders
status        short texts on a node in the page
toyworld      the bundled miniature world as the host's own MODEL, CLIP and VAE
"""
