# DeiT-Tiny with a light head on voc-animals: 600 steps of 8 crops, about four epochs of train and
# aux, in some ten minutes on two cores. Rates as for the classifier (_base_/schedule), ten times
# more for the head; nothing was chosen on val.
#   adcam segment train configs/seg/voc_animals/deit-tiny_fcn_voc-animals.py \
#       --cfg-options data.masks=masks_ad_cam weights=classifier.safetensors
_base_ = ["../../_base_/data/voc_animals.py"]
data = dict(masks=None)  # folder of `adcam generate`; None: the true masks, which aux has not
weights = "{{$ADCAM_WEIGHTS:timm}}"  # or classifier.safetensors of `adcam train`
crop_size = (320, 320)
norm_cfg = dict(type="BN")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="TimmViT",
        name="deit_tiny_patch16_224",
        img_size=320,
        out_indices=(5, 8, 11),
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=[192, 192, 192],
        in_index=[0, 1, 2],
        input_transform="resize_concat",
        channels=192,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=7,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    test_cfg=dict(mode="whole"),
)
train = dict(
    max_iters=600,
    batch_size=8,
    num_workers=0,
    crop_size=crop_size,
    amp="bfloat16",
    seed=0,
    balance=0.5,  # aux shows cows and sheep half as often as train
    val_interval=600,
    checkpoint_interval=200,
    log_interval=20,
)
train_pipeline = [
    dict(type="RandomResize", scale=(2048, 352), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
]
test = dict(split="val", scales=[1.0], flip=False, crf="none", labels="none")
self_training = dict(rounds=1)  # docs/segmentation.md, Options
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"decode_head": dict(lr_mult=10.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=20),
]
