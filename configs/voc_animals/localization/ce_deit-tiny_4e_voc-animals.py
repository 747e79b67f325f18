# Cross-entropy alone: the classifier that CAM, TS-CAM and AD-CAM are compared on.
_base_ = [
    "../../_base_/data/voc_animals_boxes.py",
    "../../_base_/model/deit-tiny.py",
    "../../_base_/schedule/classifier_10e.py",
]
task = "localization"
# The epoch is the last: there is no third split to choose it on.
train = dict(epochs=4, resize=256, jitter=0.0, choose="last", val_interval=4)
