# InCA's losses on the last block; what they are chosen on is a held-out third of train.
_base_ = ["./ce_deit-tiny_4e_voc-animals.py"]
inca = dict(
    layers=(11,),
    fg_threshold=0.2,
    drop_foreground=False,
    drop_background=False,
    contrastive="hinge",
    margin=2.0,
    consistency_weight=0.0,
)
