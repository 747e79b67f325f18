# What AD-CAM's steps bring: common neighbours, artefact patches taken out, colours followed, background
# beside the classes; every fourth image of train chooses the constants, all of val is reported.
_base_ = ["./adcam_deit-tiny_10e_voc-animals.py"]

one = dict(scales=[448])
artifacts = dict(color_steps=0)
colors = dict(artifact_ratio=0.0)
neither = dict(**artifacts, **colors)
plain = dict(similarity="none")
cut = dict(background_weight=0.0, clip_quantile=0.985)
level = "steepest:0.56"

compare = dict(
    _delete_=True,
    choose_on="train",
    report_on="val",
    choose_stride=4,
    reference="AD-CAM, both",
    dtype="bfloat16",
    rows=[
        dict(name="no common neighbours", method="ad_cam", options=dict(**plain, **neither), views=one),
        dict(
            name="no common neighbours, colours",
            method="ad_cam",
            options=dict(**plain, **colors),
            views=one,
        ),
        dict(name="AD-CAM, neither", method="ad_cam", options=neither, views=one),
        dict(name="AD-CAM, artefacts out", method="ad_cam", options=artifacts, views=one),
        dict(name="AD-CAM, colours", method="ad_cam", options=colors, views=one),
        dict(name="AD-CAM, no background", method="ad_cam", options=cut, views=one),
        dict(name="AD-CAM, both", method="ad_cam", views=one),
        dict(
            name="AD-CAM, both, two scales",
            method="ad_cam",
            views=dict(scales=[448, 560]),
        ),
        # As `adcam generate` does by itself: a level for each image.
        dict(
            name="no common neighbours, colours, a level",
            method="ad_cam",
            options=dict(**plain, **colors),
            views=one,
            rule=level,
        ),
        # The level that suits it best on train: the other one was found with common neighbours.
        dict(
            name="no common neighbours, colours, a level of its own",
            method="ad_cam",
            options=dict(**plain, **colors),
            views=one,
            rule="steepest:0.62",
        ),
        dict(name="AD-CAM, artefacts out, a level", method="ad_cam", options=artifacts, views=one, rule=level),
        dict(name="AD-CAM, colours, a level", method="ad_cam", options=colors, views=one, rule=level),
        dict(
            name="AD-CAM, no background, a level",
            method="ad_cam",
            options=cut,
            views=one,
            rule="steepest:0.58",
        ),
        dict(name="AD-CAM, both, a level", method="ad_cam", views=one, rule=level),
    ],
)
