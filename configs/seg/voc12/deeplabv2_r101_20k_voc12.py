# DeepLab-v2 ResNet-101 on pseudo masks of VOC 2012.
_base_ = [
    "../_base_/voc12.py",
    "../_base_/deeplabv2_r101.py",
    "../_base_/deeplabv2_schedule.py",
]
