# MS COCO 2014 with 81 classes, trained on pseudo masks of its images with objects, tested on val.
_base_ = ["../../_base_/data/coco14.py"]
data = dict(masks="work_dirs/coco14_masks")  # folder of `adcam generate`
