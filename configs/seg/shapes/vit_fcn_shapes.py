# A ViT from scratch on the generated pictures: the smallest network that goes through every command.
_base_ = ["../../_base_/data/shapes.py"]
data = dict(masks=None)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="TimmViT",
        name="vit_tiny_patch16_224",
        img_size=96,
        backbone_kwargs=dict(patch_size=8, embed_dim=96, depth=4, num_heads=3),
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=96,
        in_index=0,
        channels=64,
        num_convs=1,
        concat_input=False,
        num_classes=7,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    test_cfg=dict(mode="whole"),
)
train = dict(max_iters=200, batch_size=16, num_workers=0, crop_size=(96, 96), amp="none", seed=0)
train_pipeline = [
    dict(type="RandomCrop", crop_size=(96, 96)),
    dict(type="RandomFlip", prob=0.5),
]
test = dict(scales=[1.0], flip=False, crf="none", labels="none")
self_training = dict(rounds=1)  # docs/segmentation.md, Options
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False)]
