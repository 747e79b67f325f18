# The whole recipe on voc-animals: DeiT-Tiny, the masks of train and of aux, which has no true ones,
# and a network whose backbone starts as the classifier's.
_base_ = ["./adcam_deit-tiny_10e_voc-animals.py"]
recipe = dict(
    learn_from=["train", "aux"],
    evaluate=["train", "val"],
    test="val",
    network=dict(
        config="{{fileDirname}}/../seg/voc_animals/deit-tiny_fcn_voc-animals.py",
        from_classifier=True,
    ),
)
