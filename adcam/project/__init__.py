"""A project: a folder with one config, lists and labels, made from photographs and any labels.

``adcam init`` makes it, and the other commands run in it without options.
"""
