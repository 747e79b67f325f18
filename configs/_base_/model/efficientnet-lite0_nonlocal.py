# EfficientNet-Lite0 (Google, 2020) with non-local blocks, maps of 14×14 at 224 px. Weights:
# $ADCAM_WEIGHTS, a file (tools/import_efficientnet_lite.py writes one) or "timm" for the hub.
model = dict(
    kind="nonlocal_cam",
    backbone="tf_efficientnet_lite0",
    weights="{{$ADCAM_WEIGHTS:timm}}",
    attention="nonlocal",
    out_stride=16,
)
