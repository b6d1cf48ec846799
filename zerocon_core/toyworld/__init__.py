"""A miniature world whose truth is known, to try and to measure edits on any machine within seconds.

    scene       scenes and their exact pictures, masks and captions
    config      sizes of the models that ship with it
    weights     the shipped files
    classifier  attributes of a picture

Its diffusion model is made of the host's classes and therefore assembled in the pack's bridge. Nothing measured on this world
is a figure for Stable Diffusion.
"""
