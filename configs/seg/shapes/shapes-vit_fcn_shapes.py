# The network of `adcam demo`: the demo's small ViT with a light head, one and a half minutes on two
# cores.
_base_ = ["../../_base_/data/shapes.py"]
data = dict(masks=None)  # folder of `adcam generate`; None: the true masks
weights = "classifier.safetensors"  # of `adcam train`; a recipe with from_classifier names its own
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(type="TimmViT", name="shapes_vit", img_size=96, out_indices=(1, 3, 5)),
    decode_head=dict(
        type="FCNHead",
        in_channels=[128, 128, 128],
        in_index=[0, 1, 2],
        input_transform="resize_concat",
        channels=128,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=7,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
    test_cfg=dict(mode="whole"),
)
train = dict(
    max_iters=300,
    batch_size=16,
    num_workers=0,
    crop_size=(96, 96),
    amp="none",
    seed=0,
    checkpoint_interval=100,
    log_interval=20,
)
train_pipeline = [
    dict(type="RandomResize", scale=(96, 96), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(96, 96)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
]
test = dict(split="val", scales=[1.0], flip=False, crf="none", labels="none")
self_training = dict(rounds=1)  # docs/segmentation.md, Options
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"decode_head": dict(lr_mult=10.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=20),
]
