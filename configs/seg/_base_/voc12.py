# PASCAL VOC 2012, trained on pseudo masks of train_aug (10,582 images), tested on val (1,449).
_base_ = ["../../_base_/data/voc12.py"]
# `labels` is for `test.labels="given"` alone; masks: a folder of `adcam generate`.
data = dict(masks="work_dirs/voc12_masks")
