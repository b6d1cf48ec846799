"""A loaded model of the host: its layers, how they are read, gradients through it, its text encoder."""
