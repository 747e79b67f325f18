# InCA's parts on voc-animals, each added alone to cross-entropy, and all together; three seeds each:
#   adcam compare configs/voc_animals/localization/ablation_inca_deit-tiny_voc-animals.py \
#       --work-dir W --table-only
# docs/methods.md reads the table.
_base_ = ["./inca_deit-tiny_4e_voc-animals.py"]
contrast = {"inca.contrastive": "hinge"}
consistency = {"inca.consistency_weight": 1.0, "inca.layers": (8, 11)}
drop = {"inca.drop_foreground": True, "inca.drop_background": True, "inca.layers": (8,)}
alone = {"inca.contrastive": None}
parts = {
    "cross-entropy": alone,
    "contrast": contrast,
    "consistency": {**alone, **consistency},
    "dropping": {**alone, **drop},
    "all": {**contrast, **drop, **consistency},
}
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train",
    choose_stride=3,
    report_on="val",
    dtype="bfloat16",
    networks={
        f"{name}_{seed}": dict(options={**options, "train.seed": seed})
        for seed in range(3)
        for name, options in parts.items()
    },
    rows=[
        dict(
            name=f"{name}, {method}, seed {seed}",
            network=f"{name}_{seed}",
            method=method,
            views=views,
        )
        for name in parts
        for method in ("cam", "ts_cam", "ad_cam")
        for seed in range(3)
    ],
)
