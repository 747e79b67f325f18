# Cross-entropy alone against InCA's contrastive loss, three seeds each, on voc-animals:
#   adcam compare configs/voc_animals/localization/ablation_inca_deit-tiny_voc-animals.py \
#       --work-dir W --table-only
_base_ = ["./inca_deit-tiny_4e_voc-animals.py"]
configs = {
    "ce": "./ce_deit-tiny_4e_voc-animals.py",
    "inca": "./inca_deit-tiny_4e_voc-animals.py",
}
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train",
    choose_stride=3,
    report_on="val",
    dtype="bfloat16",
    networks={
        f"{name}_{seed}": dict(config=config, options={"train.seed": seed})
        for name, config in configs.items()
        for seed in range(3)
    },
    rows=[
        dict(
            name=f"{name}, {method}, seed {seed}",
            network=f"{name}_{seed}",
            method=method,
            views=views,
        )
        for name in configs
        for method in ("cam", "ts_cam", "ad_cam")
        for seed in range(3)
    ],
)
