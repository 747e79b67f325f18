# `adcam demo`: fine-tune the small shipped ViT on image labels of the generated set, compare.
_base_ = ["../_base_/data/shapes.py", "../_base_/schedule/classifier_10e.py"]
demo = dict(num_train=1200, num_val=200, size_hw=(96, 96), seed=0)
model = dict(
    backbone="shapes_vit",  # adcam/models/shapes_vit.py
    img_size=96,
    weights="shapes_vit.safetensors",  # in adcam/assets, made by tools/pretrain_shapes.py
    drop_path_rate=0.0,
)
train = dict(epochs=6, img_size=96, batch_size=32, num_workers=2, min_area=0.6, amp="bfloat16")
# A small rate for the backbone keeps its attention; the new heads learn fast.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        custom_keys={"network.head": dict(lr_mult=30.0), "cls_head": dict(lr_mult=30.0)}
    ),
)
# `adcam demo --from-scratch` changes these.
from_scratch = dict(
    model=dict(weights=None),
    train=dict(epochs=20),
    optim_wrapper=dict(
        optimizer=dict(lr=1e-3),
        paramwise_cfg=dict(
            custom_keys={"network.head": dict(lr_mult=1.0), "cls_head": dict(lr_mult=1.0)}
        ),
    ),
)
cam = dict(scales=[96])
views = dict(scales=[96])
# Chosen on train. The class token of so small a network looks at single patches, so AD-CAM starts
# from the class maps alone, and goes further; cutting maps off serves better than background here.
# No animal goes with another here, so that competition only takes.
alone = dict(rival_weight=0.0)
ad_cam = dict(
    init="cam",
    negatives="relu",
    num_steps=4,
    rival_weight=0.0,
    background_weight=0.0,
    clip_quantile=0.985,
    artifact_ratio=0.0,
    color_steps=0,
)
compare = dict(
    choose_on="train",
    report_on="val",
    choose_stride=5,
    rows=[
        dict(name="CAM", method="cam", options=alone, views=views),
        dict(name="TS-CAM", method="ts_cam", options=alone, views=views),
        dict(name="TransCAM form", method="transcam_form", options=alone, views=views),
        dict(name="MCTformer form", method="mctformer_form", options=alone, views=views),
        dict(name="CLIP-ES form", method="clip_es_form", options=alone, views=views),
        dict(name="AD-CAM", method="ad_cam", options=ad_cam, views=views),
        dict(
            name="AD-CAM + CRF",
            method="ad_cam",
            options=ad_cam,
            views=views,
            crf="toco",
            crf_thresholds=[0.4, 0.5, 0.6],
        ),
    ],
)
# A network that learns from the masks of the last row.
recipe = dict(
    learn_from="train",
    evaluate=["train", "val"],
    test="val",
    network=dict(
        config="{{fileDirname}}/../seg/shapes/shapes-vit_fcn_shapes.py", from_classifier=True
    ),
)
