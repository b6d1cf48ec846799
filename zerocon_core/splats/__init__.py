"""Gaussian splats (Kerbl et al. 2023): pictures of them that gradients flow through, and what pictures say about each splat.

gaussians    splats, and the camera that looks at them
projection   splats as ellipses in a picture
render       pictures: every input differentiable
views        pictures of splats that stay in place, linear in the colours; masks and edits carried back to the splats
training     what of the splats an optimiser moves
"""
