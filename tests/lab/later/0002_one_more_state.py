"""A step as a later version could need it, for tests: a new state and a new table, a column that is filled from others.

``fail``: in its middle, when the changes before it were made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    states = "state IN ('ready', 'claimed', 'preparing', 'suspect', 'broken', 'off', 'retired', 'lent')"
    # On SQLite this makes the table anew, with rows in others that name rows in it.
    with op.batch_alter_table("machine", schema=None) as batch:
        batch.add_column(sa.Column("lent_to", sa.String(), server_default="", nullable=False))
        batch.drop_constraint(op.f("ck_machine_state"), type_="check")
        batch.create_check_constraint(op.f("ck_machine_state"), states)
    op.create_table(
        "loan",
        sa.Column("machine_id", sa.String(), sa.ForeignKey("machine.id"), primary_key=True),
        sa.Column("to", sa.String(), nullable=False),
    )
    op.execute("INSERT INTO loan SELECT id, owner FROM machine WHERE owner = 'ann'")
    op.execute("UPDATE machine SET lent_to = owner, state = 'lent' WHERE owner = 'ann'")
    how = context.config.attributes.get("fail", "")
    if how == "sql":
        op.execute("INSERT INTO loan SELECT id, owner FROM machine WHERE owner = 'ann'")  # they are there already
    if how == "dangling":
        op.execute("DELETE FROM machine WHERE owner = 'ann'")
