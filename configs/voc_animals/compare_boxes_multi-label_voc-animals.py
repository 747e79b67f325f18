# Boxes on voc-animals with the classifier of adcam_deit-tiny_10e_voc-animals.py, which was trained on
# several labels an image, "person" among them. Thresholds chosen on train, reported on val:
#   adcam compare configs/voc_animals/compare_boxes_multi-label_voc-animals.py --work-dir W \
#       --cfg-options compare.networks.labels=W/classifier.safetensors
_base_ = ["./compare_boxes_voc-animals.py"]
compare = dict(
    networks=dict(_delete_=True, labels="./adcam_deit-tiny_10e_voc-animals.py"),
    rows=[
        dict(name="CAM", network="labels", method="cam"),
        dict(name="TS-CAM", network="labels", method="ts_cam", options=dict(negatives="keep")),
        dict(name="TS-CAM, shifted", network="labels", method="ts_cam"),
        dict(name="TS-CAM + AD-CAM", network="labels", method="ad_cam"),
        dict(
            name="TS-CAM + AD-CAM, 448 px",
            network="labels",
            method="ad_cam",
            views=dict(scales=[448], keep_ratio=False),
        ),
    ],
)
