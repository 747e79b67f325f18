# The whole recipe on COCO 2014: DeiT-Small, the masks of the 82,081 training images that show a
# class, DeepLab-v3+ ResNet-101. The masks of val (half as many again) tell how far the network goes
# beyond its teacher; evaluate="train2014_objects" does without them.
_base_ = ["./adcam_deit-small_60e_coco14.py"]
recipe = dict(
    learn_from="train2014_objects",
    evaluate=["train2014_objects", "val2014"],
    test="val2014",
    network=dict(config="{{fileDirname}}/../seg/coco14/deeplabv3plus_r101_160k_coco14.py"),
)
