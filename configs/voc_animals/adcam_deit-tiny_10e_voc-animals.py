# DeiT-Tiny on voc-animals, ten epochs of train + aux, and the table of docs/results.
_base_ = [
    "../_base_/data/voc_animals.py",
    "../_base_/model/deit-tiny.py",
    "../_base_/schedule/classifier_10e.py",
    "../_base_/cam/ad_cam.py",
    "../_base_/mask/steepest.py",
]
# Measured on half of train: docs/results/README.md, layer_decay_train.csv.
train = dict(layer_decay=0.75)
one = dict(scales=[448])
many = dict(scales=[448, 560])
# The settings this project began with: rectified maps that do not compete, class token of all
# blocks, last 8 of 12, no background beside the classes.
first = dict(
    negatives="relu",
    rival_weight=0.0,
    cls_layers="all",
    layers="last:8",
    background_weight=0.0,
    artifact_ratio=0.0,
    color_steps=0,
)
# As they were before artefact patches were taken out and maps followed colours.
before = dict(artifact_ratio=0.0, color_steps=0)
plain = dict(similarity="none", artifact_ratio=0.0)
# As their authors' code has them: docs/methods.md names the sources.
ts_cam = dict(negatives="keep")
mctformer = dict(negatives="relu", rival_weight=0.0, cls_layers="last:3")
clip_es = dict(init="cam", negatives="relu", rival_weight=0.0, layers="last:8", box_threshold=0.4)
# The class token of the blocks from which AD-CAM takes it.
late = dict(cls_layers="last:1/3")
# As it was before background diffused too: the largest values were cut off.
cut = dict(background_weight=0.0, clip_quantile=0.985)
level = "steepest:0.56"
compare = dict(
    choose_on="train",
    report_on="val",
    reference="AD-CAM",
    dtype="bfloat16",
    rows=[
        dict(name="CAM", method="cam", views=one),
        dict(name="TS-CAM", method="ts_cam", views=one),
        dict(name="TS-CAM, published", method="ts_cam", options=ts_cam, views=one),
        dict(name="TransCAM form", method="transcam_form", views=one),
        dict(name="MCTformer form", method="mctformer_form", views=one),
        dict(name="MCTformer form, published", method="mctformer_form", options=mctformer, views=one),
        dict(name="MCTformer form, late class token", method="mctformer_form", options=late, views=one),
        dict(name="CLIP-ES form", method="clip_es_form", views=one),
        dict(name="CLIP-ES form, published", method="clip_es_form", options=clip_es, views=one),
        dict(name="CLIP-ES form, late class token", method="clip_es_form", options=late, views=one),
        dict(name="AD-CAM, first settings", method="ad_cam", options=first, views=one),
        dict(name="AD-CAM, start only", method="ad_cam", options=dict(num_steps=0), views=one),
        dict(name="AD-CAM, artefacts in, no colours", method="ad_cam", options=before, views=one),
        dict(name="AD-CAM, no common neighbours", method="ad_cam", options=plain, views=one),
        dict(name="AD-CAM, no background", method="ad_cam", options=cut, views=one),
        dict(name="AD-CAM", method="ad_cam", views=one),
        dict(name="AD-CAM, multi-scale", method="ad_cam", views=many),
        dict(
            name="AD-CAM, multi-scale + CRF",
            method="ad_cam",
            views=many,
            crf="toco",
            crf_thresholds=[0.55, 0.6, 0.65],
        ),
        # As `adcam generate` does by itself: a level for each image.
        dict(name="AD-CAM, a level for each image", method="ad_cam", views=one, rule=level),
        dict(
            name="AD-CAM, no common neighbours, a level for each image",
            method="ad_cam",
            options=plain,
            views=one,
            rule=level,
        ),
        dict(
            name="AD-CAM, no background, a level for each image",
            method="ad_cam",
            options=cut,
            views=one,
            rule="steepest:0.58",
        ),
        dict(name="AD-CAM, multi-scale, a level for each image", method="ad_cam", views=many, rule=level),
    ],
)
