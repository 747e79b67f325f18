# DeiT-Tiny on voc-animals, ten epochs of train + aux, and the table of docs/results.
_base_ = [
    "../_base_/data/voc_animals.py",
    "../_base_/model/deit-tiny.py",
    "../_base_/schedule/classifier_10e.py",
    "../_base_/cam/ad_cam.py",
    "../_base_/mask/constant.py",
]
one = dict(scales=[448])
many = dict(scales=[336, 448, 560], flip=True)
compare = dict(
    choose_on="train",
    report_on="val",
    dtype="bfloat16",
    rows=[
        dict(name="CAM", method="cam", views=one),
        dict(name="TS-CAM", method="ts_cam", views=one),
        dict(name="TransCAM form", method="transcam", views=one),
        dict(name="MCTformer form", method="coupled", views=one),
        dict(name="CLIP-ES form", method="clip_es", views=one),
        dict(name="AD-CAM", method="ad_cam", views=one),
        dict(name="AD-CAM, multi-scale + flip", method="ad_cam", views=many),
        dict(
            name="AD-CAM, multi-scale + flip + CRF",
            method="ad_cam",
            views=many,
            crf="irn",
            crf_thresholds=[0.3, 0.35, 0.4, 0.45, 0.5],
        ),
    ],
)
