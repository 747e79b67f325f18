# AD-CAM with DeiT-Small on COCO 2014. MCTformer trains it as it trains VOC: batch 64 and otherwise
# its defaults (run_coco.sh and main.py of xulianuwa/MCTformer). The background score is the one of
# voc-animals and was not tuned on COCO.
_base_ = [
    "../_base_/data/coco14.py",
    "../_base_/model/deit-small.py",
    "../_base_/schedule/classifier_60e.py",
    "../_base_/cam/ad_cam.py",
    "../_base_/mask/steepest.py",
]
