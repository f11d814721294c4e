"""Run by Alembic; the connection comes from :mod:`evenkeel.lab.migrate`."""

from __future__ import annotations

from alembic import context

from evenkeel.lab.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    compare_server_default=False,
)
with context.begin_transaction():
    context.run_migrations()
