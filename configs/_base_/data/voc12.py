# PASCAL VOC 2012 with SBD: 10,582 training images (Hariharan et al., ICCV 2011), 1,449 for val.
# Root: $ADCAM_DATA_ROOT/VOC2012, the folder that holds JPEGImages.
data = dict(
    source="voc",
    root="{{$ADCAM_DATA_ROOT:data}}/VOC2012",
    classes="voc",
    labels="xml",
    train="train_aug",
    val="val",
    expected_counts=dict(train=1464, val=1449, train_aug=10582),
)
