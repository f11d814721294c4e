"""The doctor: what is wrong with a host by plain good sense, from its facts alone, without any site file.

:func:`examine` judges; it reads nothing and changes nothing, so it is safe anywhere.  One module a subject; each names
its ailments and how to recognise them.  What facts do not tell is reported as not checked, never as healthy.
"""

from evenkeel.verify.doctor.catalogue import AILMENTS, accepted, examine, harmful

__all__ = ["AILMENTS", "accepted", "examine", "harmful"]
