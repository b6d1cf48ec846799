"""The mathematics, in PyTorch alone; a model is a callable.

noising      how latent, sigma, eps and denoised latent relate
observation  what a model showed during one pass
methods      what the papers propose, one method a file
language     captions, edit directions, target prompts
maps         where predictions differ, where words are seen
metrics      what the papers report of an edit
drawing      labelled grids and curves
toyworld     the bundled miniature world
"""
