# InCA's parts on voc-animals, each added alone to cross-entropy, and contrast, dropping and the
# consistency of layers together; three seeds each:
#   adcam compare configs/voc_animals/localization/ablation_inca_deit-tiny_voc-animals.py \
#       --work-dir W --table-only
# docs/methods.md and docs/what_did_not_help.md read the table.
_base_ = ["./inca_deit-tiny_4e_voc-animals.py"]
alone = {"inca.fg_threshold": 0.2, "inca.consistency_weight": 0.0}
contrast = {
    **alone,
    "inca.contrastive": "hinge",
    "inca.contrastive_on": "maps",
    "inca.contrastive_weight": 0.3,
    "inca.margin": 2.0,
}
layers = {"inca.layers": (8, 11), "inca.consistency_on": "layers", "inca.consistency_weight": 1.0}
drop = {
    "inca.drop_foreground": True,
    "inca.drop_background": True,
    "inca.drop_rate": 0.25,
    "inca.layers": (8,),
}
parts = {
    "cross-entropy": alone,
    "contrast": contrast,
    "consistency": layers,
    "consistency of maps": {},
    "dropping": {**alone, **drop},
    "all": {**contrast, **drop, **layers},
}
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train",
    choose_stride=3,
    report_on="val",
    dtype="bfloat16",
    networks={
        f"{name}_{seed}".replace(" ", "-"): dict(options={**options, "train.seed": seed})
        for seed in range(3)
        for name, options in parts.items()
    },
    rows=[
        dict(
            name=f"{name}, {method}, seed {seed}",
            network=f"{name}_{seed}".replace(" ", "-"),
            method=method,
            views=views,
        )
        for name in parts
        for method in ("cam", "ts_cam", "ad_cam")
        for seed in range(3)
    ],
)
