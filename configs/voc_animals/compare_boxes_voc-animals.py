# Boxes on voc-animals with DeiT-Tiny trained on one animal an image, plainly and with InCA.
# Thresholds chosen on train, reported on val; two trainings of 4 epochs on 429 images. ADL is not
# among the rows: its dropping ruins so small a pre-trained network in so short a training.
_base_ = ["../_base_/data/voc_animals_boxes.py"]
task = "localization"
views = dict(scales=[224], keep_ratio=False)
published = dict(rectify="none")  # the paper's maps; "shifted" has their minimum subtracted first
compare = dict(
    choose_on="train",
    report_on="val",
    networks=dict(
        plain="./localization/ce_deit-tiny_4e_voc-animals.py",
        inca="./localization/inca_deit-tiny_4e_voc-animals.py",
    ),
    rows=[
        dict(name="CAM", network="plain", method="cam", views=views),
        dict(name="InCA", network="inca", method="cam", views=views),
        dict(name="TS-CAM", network="plain", method="ts_cam", options=published, views=views),
        dict(name="TS-CAM, shifted", network="plain", method="ts_cam", views=views),
        dict(name="InCA + AD-CAM", network="inca", method="ad_cam", views=views),
        dict(name="TS-CAM + AD-CAM", network="plain", method="ad_cam", views=views),
    ],
)
