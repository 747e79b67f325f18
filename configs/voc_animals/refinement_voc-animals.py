# Class maps against what a refined classifier makes of them, before and after a CRF: every fourth
# image of train chooses the constants, all of val is reported. With C a classifier file:
#   adcam generate data/voc-animals --voc-split train --labels data/voc-animals/labels.csv \
#       --checkpoint C --dtype bfloat16 --save-maps --out W/maps
#   adcam refine W/maps --checkpoint C --out W/refined \
#       --cfg-options refine.dtype=bfloat16 cam.dtype=bfloat16
#   adcam compare configs/voc_animals/refinement_voc-animals.py --table-only --work-dir W/table \
#       --cfg-options compare.checkpoint=W/refined/train/refined.safetensors
_base_ = ["./adcam_deit-tiny_10e_voc-animals.py"]

one = dict(scales=[448])

compare = dict(
    _delete_=True,
    choose_on="train",
    report_on="val",
    choose_stride=4,
    dtype="bfloat16",
    rows=[
        dict(name="AD-CAM, a constant", method="ad_cam", views=one),
        dict(name="AD-CAM", method="ad_cam", views=one, rule="steepest:0.56"),
        dict(
            name="refined, not diffused, a constant",
            method="refined",
            options=dict(num_steps=0),
            views=one,
        ),
        dict(name="refined, a constant", method="refined", views=one),
        dict(name="refined", method="refined", views=one, rule="steepest:0.52"),
        dict(
            name="refined + CRF, a constant",
            method="refined",
            views=one,
            crf="toco",
            crf_thresholds=[0.42, 0.47, 0.52],
        ),
    ],
)
