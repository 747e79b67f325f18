"""The record of a run in its working folder. Importing this loads no torch."""

RECIPE_NAME = "recipe.json"

NO_RECORD = "not the record of `adcam run`, `adcam compare` or `adcam demo`"
"""What is wrong with a file of that name that cannot be read as one."""
