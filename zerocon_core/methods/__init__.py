"""What the papers propose, one method a file; a model is a callable.

inversion  DDIM inversion, its noise regularisation, the way back
injection  Prompt-to-Prompt, Plug-and-Play and MasaCtrl
guidance   pix2pix-zero's and pix2pix-zeroCon's guided step
patchnce   the patch-wise contrastive loss of CUT
cds        Delta and Contrastive Denoising Score
finetune   contrastive fine-tuning with augmented prompts
"""
