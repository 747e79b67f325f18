# TS-CAM and the forms of MCTformer and CLIP-ES at their authors' settings and at ours, beside AD-CAM
# with artefact patches taken out, with and without colours followed; every fourth image of train
# chooses the thresholds, every second of val is reported.
_base_ = ["./adcam_deit-tiny_10e_voc-animals.py"]

one = dict(scales=[448])
ts_cam = dict(negatives="keep")
mctformer = dict(negatives="relu", rival_weight=0.0, cls_layers="last:3")
clip_es = dict(init="cam", negatives="relu", rival_weight=0.0, layers="last:8", box_threshold=0.4)
late = dict(cls_layers="last:1/3")
artifacts = dict(artifact_ratio=0.65, color_steps=0)
both = dict(artifact_ratio=0.65, color_steps=10)

compare = dict(
    _delete_=True,
    choose_on="train",
    report_on="val",
    choose_stride=4,
    report_stride=2,
    reference="AD-CAM, both",
    dtype="bfloat16",
    rows=[
        dict(name="CAM", method="cam", views=one),
        dict(name="TS-CAM", method="ts_cam", views=one),
        dict(name="TS-CAM, published", method="ts_cam", options=ts_cam, views=one),
        dict(name="MCTformer form", method="mctformer_form", views=one),
        dict(name="MCTformer form, published", method="mctformer_form", options=mctformer, views=one),
        dict(name="MCTformer form, late class token", method="mctformer_form", options=late, views=one),
        dict(name="CLIP-ES form", method="clip_es_form", views=one),
        dict(name="CLIP-ES form, published", method="clip_es_form", options=clip_es, views=one),
        dict(name="CLIP-ES form, late class token", method="clip_es_form", options=late, views=one),
        dict(name="AD-CAM, artefacts out", method="ad_cam", options=artifacts, views=one),
        dict(name="AD-CAM, both", method="ad_cam", options=both, views=one),
    ],
)
