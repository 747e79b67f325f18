# CAM, ADL, InCA, TS-CAM and AD-CAM on ILSVRC by the protocol of wsolevaluation: thresholds chosen on
# train-fullsup (ImageNetV2), reported on test. Trains four networks where WORK_DIR has none.
_base_ = ["../_base_/data/ilsvrc_wsol.py"]
compare = dict(
    choose_on="train-fullsup",
    report_on="test",
    networks=dict(
        cam="./cam_resnet50_10e_ilsvrc.py",
        adl="./adl_resnet50_10e_ilsvrc.py",
        inca="./inca_resnet50_10e_ilsvrc.py",
        # Trained on the same metadata, so that classes have the same names.
        ts_cam=dict(config="./ts-cam_deit-small_20e_ilsvrc.py", options=dict(data={{_base_.data}})),
    ),
    rows=[
        dict(name="CAM", network="cam", method="cam"),
        dict(name="ADL", network="adl", method="cam"),
        dict(name="InCA", network="inca", method="cam"),
        dict(name="TS-CAM", network="ts_cam", method="ts_cam", options=dict(rectify="none")),
        dict(name="TS-CAM + AD-CAM", network="ts_cam", method="ad_cam"),
    ],
)
