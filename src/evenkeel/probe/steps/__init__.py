"""What can be written on a machine: one module a kind of step.

A module of a kind has

- ``PERSISTENT``: whether what it writes is still there after a reboot;
- ``snapshot(step, root) -> str | None``: the exact state now, enough to restore it; None: not there;
- ``satisfied(step, state) -> bool``: whether that state is what the step wants;
- ``shown(step, state) -> str | None``: the state as a person or a plan writes it;
- ``write(step, state, root)``: from that state to the wanted one; raises StepFailed, OSError or Refused;
- ``ABSENT_IS_FINE`` (optional): no state means that there is nothing to set, as on a link that is down;
- ``undo(step, state, root)``: back to that state; it must work after any part of ``write``, and twice.

None of them may know of the journal (:mod:`evenkeel.probe.write` keeps it), and none decides why.
"""
