# Each part of InCA by itself with ResNet-50 on CUB, beside plain CAM and ADL:
#   adcam compare configs/cub/ablation_inca_resnet50_cub.py --work-dir W --table-only
_base_ = ["./inca_resnet50_50e_cub.py"]
off = {
    "inca.contrastive": None,
    "inca.consistency_weight": 0.0,
    "inca.drop_foreground": False,
    "inca.drop_background": False,
}
parts = {
    "nonlocal": off,
    "contrastive": {**off, "inca.contrastive": "hinge"},
    "infonce": {**off, "inca.contrastive": "infonce"},
    "consistency": {**off, "inca.consistency_weight": 1.0},
    "drop_fg": {**off, "inca.drop_foreground": True},
    "drop_bg": {**off, "inca.drop_background": True},
}
views = dict(scales=[224], keep_ratio=False)
compare = dict(
    choose_on="train-fullsup",
    report_on="test",
    networks=dict(
        cam="./cam_resnet50_50e_cub.py",
        adl="./adl_resnet50_50e_cub.py",
        **{name: dict(options=options) for name, options in parts.items()},
        inca="./inca_resnet50_50e_cub.py",
    ),
    rows=[
        dict(name=name, network=name, method="cam", views=views)
        for name in ("cam", "adl", *parts, "inca")
    ],
)
