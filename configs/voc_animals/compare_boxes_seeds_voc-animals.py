# Boxes on voc-animals with three classifiers of several labels an image, refined
# (refinement_voc-animals.py), each scored by itself: thresholds chosen on a third of train, reported
# on val. W/1 … W/3 hold what `adcam refine` wrote of seeds 1 to 3:
#   adcam compare configs/voc_animals/compare_boxes_seeds_voc-animals.py --table-only --work-dir W/boxes \
#       --cfg-options compare.networks.seed1=W/1/train/refined.safetensors \
#       compare.networks.seed2=W/2/train/refined.safetensors \
#       compare.networks.seed3=W/3/train/refined.safetensors
_base_ = ["../_base_/data/voc_animals_boxes.py"]
task = "localization"
small = dict(scales=[224], keep_ratio=False)
large = dict(scales=[448], keep_ratio=False)
methods = {
    "CAM": dict(method="cam", views=small),
    "TS-CAM": dict(method="ts_cam", views=small),
    "AD-CAM": dict(method="ad_cam", views=small),
    "AD-CAM, 448 px": dict(method="ad_cam", views=large),
    "refined, 448 px": dict(method="refined", views=large),
}
compare = dict(
    choose_on="train",
    choose_stride=3,
    report_on="val",
    dtype="bfloat16",
    networks=dict(
        seed1="./adcam_deit-tiny_10e_voc-animals.py",
        seed2="./adcam_deit-tiny_10e_voc-animals.py",
        seed3="./adcam_deit-tiny_10e_voc-animals.py",
    ),
    rows=[
        dict(name=f"{name}, seed {seed}", network=f"seed{seed}", **options)
        for name, options in methods.items()
        for seed in (1, 2, 3)
    ],
)
