# InCA with EfficientNet-Lite0: contrast of features and dropping, both behind the last layer. Options
# were chosen on a third of train that was held out; docs/methods.md has what was tried, and that it
# gains nothing over CAM on val, where multiplying the maps by the attention (method ts_cam) does.
_base_ = ["./cam_efficientnet-lite0_2e_voc-animals.py"]
inca = dict(
    layers=(2,),
    fg_threshold=0.12,
    drop_threshold=0.5,
    drop_rate=0.75,
    drop_foreground=True,
    drop_background=True,
    contrastive="hinge",
    contrastive_weight=0.5,
    margin=1.0,
    consistency_weight=0.0,
)
