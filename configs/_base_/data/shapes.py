# The generated set of `adcam demo`, written by adcam.data.shapes.make_shapes in VOC layout.
data = dict(
    source="voc",
    root="{{$ADCAM_DATA_ROOT:data}}/shapes",
    classes="shapes",
    labels="labels.csv",
    train="train",
    val="val",
)
