# Methods side by side by the protocol of wsolevaluation, on four networks that a config names.
compare = dict(
    choose_on="train-fullsup",
    report_on="test",
    rows=[
        dict(name="CAM", network="cam", method="cam"),
        dict(name="ADL", network="adl", method="cam"),
        dict(name="InCA", network="inca", method="cam"),
        dict(name="TS-CAM", network="ts_cam", method="ts_cam", options=dict(negatives="keep")),
        dict(name="TS-CAM + AD-CAM", network="ts_cam", method="ad_cam"),
    ],
)
