# InCA's contrastive loss on the class maps; docs/methods.md has what it gains and costs, and why the
# other parts are off.
_base_ = ["./ce_deit-tiny_4e_voc-animals.py"]
inca = dict(
    layers=(11,),
    fg_threshold=0.2,
    drop_foreground=False,
    drop_background=False,
    contrastive="hinge",
    drop_rate=0.25,
    contrastive_on="maps",
    contrastive_weight=0.3,
    margin=2.0,
    consistency_weight=0.0,
)
