# AD-CAM with DeiT-Small on VOC 2012 train_aug.
_base_ = [
    "../_base_/data/voc12.py",
    "../_base_/model/deit-small.py",
    "../_base_/schedule/classifier_60e.py",
    "../_base_/cam/ad_cam.py",
    "../_base_/mask/steepest.py",
]
