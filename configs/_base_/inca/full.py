# Every part of InCA that the abstract names (arXiv 2009.12063), with numbers of our own;
# docs/methods.md says what is the paper's. Class maps that follow the attention
# (consistency_on="maps"), the part that helps on voc-animals, are not among them. These settings
# were measured on the generated set alone (configs/shapes, at a drop rate of 0.25), never on CUB or
# ILSVRC.
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
