# InCA's parts with EfficientNet-Lite0 on voc-animals: plain CAM, ADL, each part alone, InCA as its
# config has it, all parts together; class maps alone and multiplied by the last attention; three
# seeds each:
#   adcam compare configs/voc_animals/localization/ablation_inca_efficientnet-lite0_voc-animals.py \
#       --work-dir W --table-only
# docs/methods.md and docs/what_did_not_help.md read the table.
_base_ = ["./inca_efficientnet-lite0_2e_voc-animals.py"]
off = {"inca.contrastive": None, "inca.consistency_weight": 0.0}
layers = {"inca.layers": (1, 2), "inca.consistency_on": "layers", "inca.consistency_weight": 1.0}
dropping = {"inca.drop_foreground": True, "inca.drop_background": True}
parts = {
    "non-local": {**off, "model.attention": "nonlocal"},
    "contrast": {"inca.consistency_weight": 0.0},
    "consistency": {**off, **layers},
    "consistency of maps": {"inca.contrastive": None},
    "background": {**off, "inca.drop_background": True},
    "contrast and dropping": {**dropping, "inca.consistency_weight": 0.0},
    "all": {
        **dropping,
        "model.attention": "nonlocal",
        "inca.layers": (1, 2),
        "inca.drop_layers": (2,),
    },
}
configs = {"CAM": "cam", "ADL": "adl", **dict.fromkeys((*parts, "InCA"), "inca")}
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train",
    choose_stride=3,
    report_on="val",
    dtype="bfloat16",
    networks={
        f"{name}_{seed}".replace(" ", "-"): dict(
            config=f"./{config}_efficientnet-lite0_2e_voc-animals.py",
            options={**parts.get(name, {}), "train.seed": seed},
        )
        for seed in range(3)
        for name, config in configs.items()
    },
    rows=[
        dict(
            name=f"{name}{suffix}, seed {seed}",
            network=f"{name}_{seed}".replace(" ", "-"),
            method=method,
            views=views,
        )
        for method, suffix in (("cam", ""), ("ts_cam", " × attention"))
        for name in configs
        for seed in range(3)
    ],
)
