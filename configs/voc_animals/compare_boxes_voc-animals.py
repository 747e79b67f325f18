# Boxes on voc-animals: thresholds chosen on train, reported on val. The classifier of
# adcam_deit-tiny_10e_voc-animals.py scores the first rows:
#   adcam compare configs/voc_animals/compare_boxes_voc-animals.py --work-dir W \
#       --cfg-options compare.networks.labels=W/classifier.safetensors
_base_ = ["../_base_/data/voc_animals_boxes.py"]
task = "localization"
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train",
    report_on="val",
    networks=dict(labels="./adcam_deit-tiny_10e_voc-animals.py"),
    rows=[
        dict(name="CAM", network="labels", method="cam", views=views),
        dict(name="TS-CAM", network="labels", method="ts_cam", views=views),
        dict(name="AD-CAM", network="labels", method="ad_cam", views=views),
    ],
)
