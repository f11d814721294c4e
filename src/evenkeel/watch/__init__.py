"""Notice at once when a host is no longer as planned, say so, and put back what may be put back while guests run.

The probe waits for events (:mod:`evenkeel.probe.watch`); :mod:`.picture` knows what to look at again after each, and
:mod:`evenkeel.verify` judges, so that watching and verifying can never disagree.  :mod:`.repair` writes, through the
journal and in the order of apply.  Nothing here stops, starts or moves a guest.
"""
