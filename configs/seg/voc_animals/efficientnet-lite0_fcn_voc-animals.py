# EfficientNet-Lite0 with a light head on voc-animals: a small CNN as the student, by the schedule of
# the DeiT-Tiny beside it. Weights: tools/import_efficientnet_lite.py writes them.
#   adcam segment train configs/seg/voc_animals/efficientnet-lite0_fcn_voc-animals.py \
#       --cfg-options data.masks=masks_ad_cam weights=tf_efficientnet_lite0.safetensors
_base_ = ["./deit-tiny_fcn_voc-animals.py"]
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        _delete_=True,
        type="TimmCNN",
        name="tf_efficientnet_lite0",
        out_indices=(2, 3, 4),
        out_stride=16,
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=[40, 112, 320]),
)
