"""From wishes and facts to settings with reasons.  Pure: nothing below this folder does I/O, asks the time or a die."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenkeel.documents.facts import Facts
    from evenkeel.documents.plan import Plan
    from evenkeel.documents.site import Site
    from evenkeel.plan.seats import Seats


def make_plan(
    site: Site, facts: Mapping[str, Facts], keep: Plan | None = None, chosen: Mapping[str, Seats] | None = None
) -> Plan:
    """The plan of every host of ``site``; ``facts``: by the name of the host in the site.

    Guests stay where ``keep``, an earlier plan, has them, or where the facts found them defined; a note says which
    ones cannot, and why.  ``chosen``: by host, seats for guests that have none yet, as placing over the fleet has them.
    Same input, same bytes.  Raises WrongInput (with ``others`` when there are several reasons) when the site does not
    fit: a guest larger than its host, two guests on one core, goal realtime without a real-time kernel.
    """
    # Here, so that reading a site file does not load the whole catalogue of rules.
    from evenkeel.plan.planner import make_plan as make

    return make(site, facts, keep, chosen)
