# InCA from scratch: a narrow ResNet-18 on the generated set for localisation, maps of 12×12.
_base_ = ["../_base_/data/shape_boxes.py", "../_base_/inca/full.py"]
task = "localization"
inca = dict(drop_rate=0.25)  # from scratch, ADL's 0.75 behind three depths learns no class
model = dict(
    kind="nonlocal_cam",
    backbone="resnet18",
    attention="nonlocal",
    out_stride=8,
    backbone_kwargs=dict(channels=[16, 32, 64, 128]),
)
train = dict(
    epochs=8,
    img_size=96,
    resize=108,
    batch_size=32,
    num_workers=2,
    min_area=1.0,
    jitter=0.0,
    amp="bfloat16",
    choose="last",
    val_interval=8,
    seed=0,
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, convert_to_iter_based=True),
]
