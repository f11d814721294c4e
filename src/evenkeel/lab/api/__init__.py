"""REST of the lab: one module a noun, each with a ``router``; :mod:`evenkeel.lab.api.app` finds and serves them all.

A handler is thin: it reads what was asked, calls a function of ``evenkeel.lab.NOUN`` with ``caller.lab`` and
``caller.actor``, and returns its model.  It decides nothing, and it never touches the database.
"""
