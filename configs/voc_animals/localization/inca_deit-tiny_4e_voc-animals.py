# InCA with DeiT-Tiny: class maps that are pulled towards the class token's attention of all blocks.
# docs/methods.md has what this gains, docs/what_did_not_help.md why the other parts are off.
_base_ = ["./ce_deit-tiny_4e_voc-animals.py"]
inca = dict(
    layers=(11,),
    drop_foreground=False,
    drop_background=False,
    contrastive=None,
    consistency_on="maps",
    consistency_weight=4.0,
)
