# CAM, ADL, InCA, TS-CAM and AD-CAM on CUB by the protocol of wsolevaluation: thresholds chosen on
# train-fullsup, reported on test. Trains four networks where WORK_DIR has none.
_base_ = ["../_base_/data/cub_wsol.py", "../_base_/compare/wsol_boxes.py"]
compare = dict(
    networks=dict(
        cam="./cam_resnet50_50e_cub.py",
        adl="./adl_resnet50_50e_cub.py",
        inca="./inca_resnet50_50e_cub.py",
        # Trained on the same metadata, so that classes have the same names.
        ts_cam=dict(config="./ts-cam_deit-small_60e_cub.py", options=dict(data={{_base_.data}})),
    ),
)
