"""NetBox and the lab: what NetBox says comes in by sync, what the lab knows goes out by hand, field by field.

``fields`` says who owns which field, ``compare`` decides (pure), ``client`` talks HTTP; ``imports`` and ``sync``
bring in by ``take``, ``push`` writes back, ``log`` keeps what was overwritten, ``undo`` restores it, ``hook`` takes
webhooks.
"""
