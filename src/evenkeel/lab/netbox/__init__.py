"""NetBox and the lab: what NetBox says comes in by sync, what the lab knows goes out by hand, field by field.

``fields`` says who owns which field, ``compare`` decides (pure), ``client`` talks HTTP, ``sync`` brings in, ``push``
writes back, ``log`` keeps and undoes, ``hook`` takes webhooks.
"""
