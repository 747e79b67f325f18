# DeepLab-v3+ ResNet-50 on pseudo masks of VOC 2012; mmsegmentation's 20k schedule.
_base_ = [
    "../_base_/voc12.py",
    "../_base_/crops_512.py",
    "../_base_/deeplabv3plus_r50.py",
    "../_base_/sgd.py",
]
