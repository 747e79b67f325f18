# COCO 2014 as `adcam convert coco` lays it out (docs/datasets.md): 82,081 training images that show
# one of the 80 classes, all 40,504 of val. Root: $ADCAM_DATA_ROOT/coco14.
data = dict(
    source="coco14",
    root="{{$ADCAM_DATA_ROOT:data}}/coco14",
    classes="coco",
    train="train2014_objects",
    val="val2014",
    expected_counts=dict(
        train2014=82783, train2014_objects=82081, val2014=40504, val2014_objects=40137
    ),
)
