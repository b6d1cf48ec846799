"""Errors and cancels at random operations of every loop: afterwards model and modes are as they were, and no tensor is left.

    python tests/host/faults [300]

A dispatch mode counts each operation that PyTorch runs, in the model, its backward pass, the losses, the text encoder and the
VAE, the making of tensors among them, and raises at the one that was drawn. Others are raised where a loop tells of its progress.
"""
