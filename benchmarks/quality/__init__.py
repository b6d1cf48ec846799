"""What an edit is worth on the toy world's test bed; tables are in docs/measurements.md and docs/defaults.md.

edit_quality      success against preservation, methods and ablations; studies, report, drawing
edit_masks        edit masks against the renderer's truth
soft_contrastive  the ablation of contrastive fine-tuning
"""
