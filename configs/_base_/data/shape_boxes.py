# The generated set for localisation, written by adcam.data.shapes.make_shape_boxes.
data = dict(
    source="wsol",
    root="{{$ADCAM_DATA_ROOT:data}}/shape_boxes",
    metadata="metadata/shapes",
    classes="shapes",
    train="train-weaksup",
    val="train-fullsup",
    test="test",
)
