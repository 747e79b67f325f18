# DeepLab-v2 (Chen et al., TPAMI 2018, arXiv 1606.00915): ResNet-101 at stride 8, ASPP-L. What most
# work on image-level labels reports; its batch statistics stay those of ImageNet.
weights = "torchvision:resnet101"  # looked up, never fetched; or a file
norm_cfg = dict(type="BN", requires_grad=False)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="ResNet",
        depth=101,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=True,
        style="pytorch",
    ),
    decode_head=dict(
        type="DeepLabV2Head",
        in_channels=2048,
        in_index=3,
        dilations=(6, 12, 18, 24),
        num_classes=21,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    test_cfg=dict(mode="whole"),
)
