# `adcam demo --task localization`: fine-tune the small shipped ViT on image labels of the generated
# localisation set, plainly, with ADL's dropping and with InCA; boxes with thresholds chosen on
# train-fullsup, reported on test.
_base_ = ["../_base_/data/shape_boxes.py", "../_base_/schedule/classifier_10e.py"]
task = "localization"
demo = dict(num_train=800, num_val=150, num_test=200, size_hw=(96, 96), seed=0)
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
# docs/methods.md: on a ViT both act on the class token's attention. ADL is dropping of the most
# discriminative part behind one block, InCA its contrastive loss, as on voc-animals.
adl = dict(
    layers=(4,), drop_rate=0.25, drop_background=False, contrastive=None, consistency_weight=0.0
)
in_sample = dict(
    layers=(5,),
    fg_threshold=0.2,
    drop_foreground=False,
    drop_background=False,
    contrastive_on="maps",
    margin=2.0,
    consistency_weight=0.0,
)
views = dict(scales=[96], keep_ratio=False)
cam = views
published = dict(negatives="keep")  # the paper's maps; "shifted" has their minimum subtracted first
# As in the demo for masks: the class token of so small a network looks at single patches.
ad_cam = dict(init="cam", negatives="relu", num_steps=4, artifact_ratio=0.0, color_steps=0)
compare = dict(
    choose_on="train-fullsup",
    report_on="test",
    networks=dict(adl=dict(options=dict(inca=adl)), inca=dict(options=dict(inca=in_sample))),
    rows=[
        dict(name="CAM", method="cam", views=views),
        dict(name="ADL", network="adl", method="cam", views=views),
        dict(name="InCA", network="inca", method="cam", views=views),
        dict(name="TS-CAM", method="ts_cam", options=published, views=views),
        dict(name="TS-CAM, shifted", method="ts_cam", views=views),
        dict(name="TS-CAM + AD-CAM", method="ad_cam", options=ad_cam, views=views),
        dict(name="InCA + AD-CAM", network="inca", method="ad_cam", options=ad_cam, views=views),
    ],
)
