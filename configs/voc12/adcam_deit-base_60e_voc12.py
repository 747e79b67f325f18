# AD-CAM with DeiT-Base on VOC 2012 train_aug.
_base_ = [
    "../_base_/data/voc12.py",
    "../_base_/model/deit-base.py",
    "../_base_/schedule/classifier_60e.py",
    "../_base_/cam/ad_cam.py",
    "../_base_/mask/steepest.py",
]
