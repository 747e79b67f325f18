# CUB-200-2011 in its official files, split as TS-CAM does: 5,994 for training, 5,794 for the test.
# There are no images to choose an epoch on; train.choose="best" would choose on the test, "oracle".
# Root: $ADCAM_DATA_ROOT/CUB_200_2011, the folder that holds images.txt.
task = "localization"
data = dict(
    source="cub",
    root="{{$ADCAM_DATA_ROOT:data}}/CUB_200_2011",
    train="train",
    val="test",
    test="test",
)
