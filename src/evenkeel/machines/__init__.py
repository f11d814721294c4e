"""How to reach a machine: local, over ssh, a virtual host (QEMU), or a recorded tree.

One small protocol (:mod:`evenkeel.machines.protocol`), one module for each implementation.  Nothing here knows what
is read or written on a machine: that is the probe's and the plan's business.
"""
