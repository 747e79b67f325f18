# AD-CAM's options one at a time, and the other methods with other class maps, on
# every third image of train (the choosing split), with the classifier that adcam_deit-tiny_10e_voc-animals.py left in W:
#   adcam compare configs/voc_animals/ablation_ad-cam_voc-animals.py --table-only \
#       --work-dir W/ablation --cfg-options compare.checkpoint=W/classifier.safetensors
_base_ = ["./adcam_deit-tiny_10e_voc-animals.py"]
views = dict(scales=[448])
options = [
    dict(),
    dict(similarity="cosine"),
    dict(similarity="bhattacharyya"),
    dict(similarity="none"),
    dict(similarity="none", artifact_ratio=0.0),
    dict(artifact_ratio=0.0),
    dict(artifact_ratio=0.5),
    dict(artifact_ratio=0.8),
    dict(color_steps=0),
    dict(color_steps=5),
    dict(color_steps=20),
    dict(artifact_ratio=0.0, color_steps=0),
    dict(power=1.0),
    dict(power=3.0),
    dict(power=4.0),
    dict(normalize="row"),
    dict(normalize="column"),
    dict(num_steps=1),
    dict(num_steps=3),
    dict(num_steps=4),
    dict(alpha=0.5),
    dict(alpha=0.8),
    dict(alpha=0.8, num_steps=None),
    dict(layers="all"),
    dict(layers="last:8"),
    dict(layers="last:4"),
    dict(init="cam"),
    dict(negatives="relu"),
    dict(rival_weight=0.0),
    dict(rival_weight=0.3),
    dict(rival_weight=0.7),
    dict(background_weight=0.0),
    dict(background_weight=0.2),
    dict(background_weight=0.5),
    dict(background_weight=1.0),
    dict(background_weight=0.0, clip_quantile=0.985),
    dict(clip_quantile=0.985),
    dict(rival_weight=0.0, background_weight=0.0),
    dict(cls_layers="all"),
    dict(cls_layers="last:6"),
    dict(cls_layers="last:2"),
    dict(negatives="relu", cls_layers="all"),
    dict(
        negatives="relu",
        rival_weight=0.0,
        cls_layers="all",
        layers="last:8",
        background_weight=0.0,
        artifact_ratio=0.0,
        color_steps=0,
    ),
]
others = ["cam", "ts_cam", "transcam_form", "mctformer_form", "clip_es_form"]
compare = dict(
    _delete_=True,
    choose_on="train",
    report_on="train",
    choose_stride=3,
    report_stride=3,
    dtype="bfloat16",
    rows=[
        dict(
            name=", ".join(f"{key}={value}" for key, value in entry.items()) or "defaults",
            method="ad_cam",
            options=entry,
            views=views,
        )
        for entry in options
    ]
    + [
        dict(
            name=", ".join([method, *(f"{key}={value}" for key, value in entry.items())]),
            method=method,
            options=entry,
            views=views,
        )
        for method in others
        for entry in (dict(), dict(negatives="relu"), dict(rival_weight=0.0))
    ],
)
