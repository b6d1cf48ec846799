"""How good is an edit: what the papers report, as functions of images or of a network's features.

Images are (B, H, W, 3) in [0, 1], masks (B, H, W) in [0, 1] with 1 where the edit is allowed. Every function gives one value an
image, FID alone one for all; what it means to be good and how a paper scales it is in `report`.

    pixels      MSE, PSNR and SSIM, on the whole image or outside a mask
    structure   distance between the self-similarities of DINO's keys
    clip        CLIP score, accuracy, direction and R-precision, of CLIP's features
    frechet     Frechet distance between two sets of features (FID)
    edits       all of these for a batch of edits
    networks    DINO, CLIP, LPIPS and Inception: from images and texts to what the functions above take
    report      what the figures are called, their means and their table
"""
