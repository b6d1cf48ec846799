"""The only code that touches the host's internals.

model      a loaded model: its layers, how it is read, gradients through it, its text encoder
loops      the core's loops where the host would sample
networks   networks beside the model: captioners, BERT, what judges edits
files      where such networks, edit directions and databases lie
status     short texts on a node in the page
toyworld   the bundled miniature world as the host's own MODEL, CLIP and VAE
tabletop   the same of the world that replaces it once its models are trained
"""
