"""The mathematics of ZeroCon in plain PyTorch.

Nothing here knows the host: a model is a callable, progress is a callback, and the same code runs on a ComfyUI model, on a
diffusers U-Net or on a closed form. One module a subject:

    diffusion      the few relations between latent, sigma, eps and denoised latent that everything else is written in
    inversion      DDIM inversion with noise regularisation and fixed-point refinement
    directions     edit directions in text-embedding space, from paired sentence banks
    patchnce       the patch-wise contrastive loss
    guidance       pix2pix-zero's cross-attention loss, joined with the contrastive loss into one guided step
    cds            delta and contrastive denoising score
    prompts        target prompts that change one word of a caption, with english, wordnet and fillmask for its words
    masks          where an edit belongs: differences between prompts
    finetune       contrastive fine-tuning of low-rank adapters with augmented prompts
    attention_maps heat maps of where the model sees each word, with drawing for grids and curves
    metrics        what the papers report of an edit
    captioning     image captions from a BLIP model
    toyworld       a miniature world with exact ground truth
"""
