"""Questions about a running kernel, on the controlling side: which source, at what cost, and the answer.

``planner`` decides and is pure; ``ask`` talks to the probe (:mod:`evenkeel.probe.trace`), which does the work.
"""
