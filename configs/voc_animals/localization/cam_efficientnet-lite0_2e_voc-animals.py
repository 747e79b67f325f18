# Plain CAM with EfficientNet-Lite0, two epochs: a schedule of its own, which ADL and InCA beside it
# share. Rate and epochs were chosen on a third of train that was held out
# (docs/what_did_not_help.md). The channel mean is read, for maps that are multiplied by it, and
# changes nothing.
_base_ = [
    "../../_base_/data/voc_animals_boxes.py",
    "../../_base_/model/efficientnet-lite0_nonlocal.py",
]
task = "localization"
# What lies before the first depth stays as ImageNet left it: faster, and steadier on 429 images.
model = dict(attention="channel", frozen_parts=1)
train = dict(
    epochs=2,
    img_size=224,
    resize=256,
    batch_size=16,
    num_workers=0,
    min_area=1.0,
    jitter=0.0,
    amp="bfloat16",
    seed=0,
    choose="last",  # there is no third split to choose the epoch on
    val_interval=1,
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    # Non-local blocks start as the identity and leave it slowly.
    paramwise_cfg=dict(
        custom_keys={
            "network.head": dict(lr_mult=10.0),
            "network.attentions": dict(lr_mult=0.1),
        }
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=8),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=8),
]
