# How `adcam generate --config` makes maps.
cam = dict(method="ad_cam", method_options=dict(), scales=[448], flip=False)
