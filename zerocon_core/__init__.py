"""The mathematics of ZeroCon in plain PyTorch.

Nothing here knows the host: a model is a callable, progress is a callback, and the same code runs on a ComfyUI model, on a
diffusers U-Net or on a closed form. Latents are (B, C, ...) in the model's own space, noise levels are the host's sigma, and
anything wrong with them is a ValueError of one sentence. A room for each question that a reader comes with:

    noising      how latent, noise, sigma and prediction belong together, for eps, v and flow models
    observation  what a model shows of itself in a pass, and how two passes are compared
    methods      the papers, one a file: inversion, guidance, patchnce, cds, finetune
    language     the words: edit directions, target prompts, English, WordNet, BERT, captions
    maps         places in an image: where predictions differ, where a word is seen
    metrics      how good an edit is: what the papers report, and the networks that look
    pretrained   networks from local folders, whole or refused
    drawing      results as pictures: grids, heat, curves
    toyworld     a miniature world whose truth is known
    tabletop     the world in three dimensions that replaces it once its models are trained
"""
