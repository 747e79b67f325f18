# CAM, ADL, InCA, TS-CAM and AD-CAM on ILSVRC by the protocol of wsolevaluation: thresholds chosen on
# train-fullsup (ImageNetV2), reported on test. Trains four networks where WORK_DIR has none.
_base_ = ["../_base_/data/ilsvrc_wsol.py", "../_base_/compare/wsol_boxes.py"]
compare = dict(
    networks=dict(
        cam="./cam_resnet50_10e_ilsvrc.py",
        adl="./adl_resnet50_10e_ilsvrc.py",
        inca="./inca_resnet50_10e_ilsvrc.py",
        # Trained on the same metadata, so that classes have the same names.
        ts_cam=dict(config="./ts-cam_deit-small_20e_ilsvrc.py", options=dict(data={{_base_.data}})),
    ),
)
