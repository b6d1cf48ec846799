"""PIE-Bench (Ju et al. 2024) through a real ComfyUI server: `python dev.py piebench`."""
