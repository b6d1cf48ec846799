"""A small 3D world whose truth is known, to try and to measure edits on any machine within seconds.

    scene        what exists: solids, floor, light, camera
    sampling     scenes by seed, those of training apart from those that measure
    edits        the same scene with one thing changed
    captions     scenes in words
    render       exact pictures and masks; `solids`, `floor` and `lighting` are its parts
    config       sizes of the models that ship with it
    weights      the shipped files
    autoencoder  pictures as latents

Its diffusion model is made of the host's classes and therefore assembled in the pack's bridge. Nothing measured on this world
is a figure for Stable Diffusion.
"""
