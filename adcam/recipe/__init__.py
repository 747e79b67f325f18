"""Commands of several stages, and their reports. Importing this alone loads no torch."""

RECIPE_NAME = "recipe.json"
"""The record of a run in its working folder."""

NO_RECORD = "not the record of `adcam run`, `adcam compare` or `adcam demo`"
"""What is wrong with a file of that name that cannot be read as one."""
