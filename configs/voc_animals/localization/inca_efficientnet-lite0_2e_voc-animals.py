# InCA with EfficientNet-Lite0: the contrast of features, and class maps that are pulled towards the
# attention, both behind the last layer; nothing is dropped. Options were chosen on a third of train
# that was held out. docs/methods.md has what this gains, docs/what_did_not_help.md what else was
# tried.
_base_ = ["./cam_efficientnet-lite0_2e_voc-animals.py"]
inca = dict(
    layers=(2,),
    fg_threshold=0.12,
    drop_threshold=0.5,
    drop_rate=0.75,
    drop_foreground=False,
    drop_background=False,
    contrastive="hinge",
    contrastive_weight=0.5,
    margin=1.0,
    consistency_on="maps",
    consistency_weight=2.0,
)
