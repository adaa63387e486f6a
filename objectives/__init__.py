"""Ready-made objectives, one file each: data, model, task. Files whose name starts with an underscore are shared parts.

Every objective exports ``make_task``, a sensible search ``SPACE`` and the length of a run, ``N_STEPS`` with a look
every ``INTERVAL_STEPS``. A batch has inputs ``x`` and labels ``y``; held-out examples are reached through the task's
sealed ``evaluate`` alone.
"""
