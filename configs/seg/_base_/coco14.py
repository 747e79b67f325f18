# MS COCO 2014 with 81 classes, laid out by `adcam convert`: 82,783 training and 40,504 validation
# images. masks: a folder of `adcam generate`.
data = dict(
    source="coco14",
    root="{{$ADCAM_DATA_ROOT:data}}/coco",
    classes="coco",
    train="train2014",
    val="val2014",
    expected_counts=dict(train2014=82783, val2014=40504),
    masks="work_dirs/coco14_masks",
)
