# The whole recipe on VOC 2012: `adcam run` trains DeiT-Small on the labels of train_aug, makes its
# 10,582 masks, and trains DeepLab-v3+ ResNet-101 on them. Masks are scored on train, as the field
# does, and on val, where the network can be held against the method that taught it.
_base_ = ["./adcam_deit-small_60e_voc12.py"]
recipe = dict(
    learn_from="train_aug",
    evaluate=["train", "val"],
    test="val",
    network=dict(config="{{fileDirname}}/../seg/voc12/deeplabv3plus_r101_40k_voc12.py"),
)
