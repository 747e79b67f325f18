# Ten epochs for a few thousand images. AdamW with weight decay 0.05 as TS-CAM and MCTformer
# (arXiv 2103.14862, 2203.02891); rate and head factor chosen on voc-animals.
train = dict(
    epochs=10,
    img_size=224,
    batch_size=32,
    num_workers=2,
    min_area=0.35,
    jitter=0.3,
    amp="bfloat16",
    cls_token_loss=1.0,
    seed=0,
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "network.head": dict(lr_mult=10.0),
            "cls_head": dict(lr_mult=10.0),
        }
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, convert_to_iter_based=True),
]
