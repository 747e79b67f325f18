# DeiT-Small (Touvron et al., ICML 2021). Weights: $ADCAM_WEIGHTS, a file or "timm" for the hub.
model = dict(
    backbone="deit_small_patch16_224",
    img_size=224,
    weights="{{$ADCAM_WEIGHTS:timm}}",
    drop_path_rate=0.1,
)
