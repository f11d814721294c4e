"""Which machines somebody has, or has prepared for him: one question, which many modules ask within theirs.

Names and a query only.  Who gives machines and takes them back is :mod:`evenkeel.lab.claims`.
"""

from __future__ import annotations

from sqlalchemy import select

from evenkeel.lab.schema import claim

#: States of a claim that has its machine.
STATES = ("preparing", "active")
#: Ids of these machines.
MACHINES = select(claim.c.machine_id).where(claim.c.state.in_(STATES), claim.c.machine_id.is_not(None))
