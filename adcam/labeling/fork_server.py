"""Loaded first by the server that workers are forked from, and by no other process.

:func:`adcam.labeling.executor.load_ahead` names it.
"""

from adcam.limits import offer_to_be_killed

# After the workers, whose images are known, and before the process that reports on them.
offer_to_be_killed(500)
