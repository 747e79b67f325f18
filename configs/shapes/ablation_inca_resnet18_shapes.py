# Each part of InCA by itself, on the generated set (configs/shapes/compare_boxes_shapes.py writes it):
#   adcam compare configs/shapes/ablation_inca_resnet18_shapes.py --work-dir W/0 --table-only
# and other seeds with --work-dir W/1 --cfg-options train.seed=1.
_base_ = ["./inca_resnet18_8e_shapes.py"]
off = {
    "inca.contrastive": None,
    "inca.consistency_weight": 0.0,
    "inca.drop_foreground": False,
    "inca.drop_background": False,
}
on = {
    "contrastive": {"inca.contrastive": "hinge"},
    "consistency": {"inca.consistency_weight": 1.0},
    "drop_fg": {"inca.drop_foreground": True},
    "drop_bg": {"inca.drop_background": True},
}
parts = {
    "cam": off,  # non-local blocks alone
    "adl": {**off, **on["drop_fg"], "model.attention": "channel"},
    **{name: {**off, **change} for name, change in on.items()},
    "infonce": {**off, "inca.contrastive": "infonce"},
    "losses": {**off, **on["contrastive"], **on["consistency"]},
    "inca": {},
}
views = dict(scales=[96], keep_ratio=False)
compare = dict(
    choose_on="train-fullsup",
    report_on="test",
    networks={name: dict(options=options) for name, options in parts.items()},
    rows=[dict(name=name, network=name, method="cam", views=views) for name in parts],
)
