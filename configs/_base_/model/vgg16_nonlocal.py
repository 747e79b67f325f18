# VGG16 (Simonyan and Zisserman, ICLR 2015) with non-local blocks, maps of 14×14
# at 224 px; out_stride=8 gives 28×28. Weights: $ADCAM_WEIGHTS, a file or "timm" for the hub.
model = dict(
    kind="nonlocal_cam",
    backbone="vgg16",
    weights="{{$ADCAM_WEIGHTS:timm}}",
    attention="nonlocal",
    out_stride=16,
)
