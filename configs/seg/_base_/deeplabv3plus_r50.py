# DeepLab-v3+ (Chen et al., ECCV 2018, arXiv 1802.02611) as in mmsegmentation's
# _base_/models/deeplabv3plus_r50-d8.py, but on torchvision's ResNet in place of the deep-stem
# variant, whose weights mmsegmentation would fetch. ("mmseg::…" as a base does not work: mmengine
# 0.10.12 looks for a distribution called mmsegmentation, and the maintained one has another name.)
weights = "torchvision:resnet50"  # looked up, never fetched; or a file
norm_cfg = dict(type="SyncBN", requires_grad=True)  # becomes BN on one device
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
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(
        type="DepthwiseSeparableASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="ConfidenceCrossEntropy", loss_weight=0.4),
    ),
    test_cfg=dict(mode="whole"),
)
