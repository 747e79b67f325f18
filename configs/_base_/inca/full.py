# Every part of InCA (arXiv 2009.12063); docs/methods.md says what is the paper's and what is ours.
inca = dict(
    layers="all",
    fg_threshold=0.3,
    drop_threshold=0.8,
    drop_rate=0.75,
    drop_foreground=True,
    drop_background=True,
    contrastive="hinge",
    contrastive_weight=1.0,
    consistency_weight=1.0,
)
