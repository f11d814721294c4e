"""Why a step waits, as a code that programs can count and a sentence that a person can act on.

Answered from the dispatcher's memory, in its thread (:meth:`evenkeel.lab.dispatching.Dispatching.ask`), so it says what
the dispatcher itself would say.
"""

from __future__ import annotations

from typing import Literal

from evenkeel.documents.base import Model
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.live import Node
from evenkeel.lab.words import duration

Code = Literal[
    "after",  # other steps
    "no-machine",  # no machine of the pool is as it wants
    "machines-barred",  # there are such machines, their owners do not let steps of that person have them
    "machines-down",  # those that it may have are broken, suspect or off
    "machines-busy",  # there are such machines, none is free
    "machines-power",  # there are such machines; one that is free is too much for the power budget of its site
    "no-agent",  # no agent was ever as it wants
    "agents-away",  # there are such agents, none is connected
    "agents-drained",  # those that are connected take nothing
    "agents-busy",  # all that fit run other steps
    "starting",  # it starts this very moment
    "unknown",  # no dispatcher runs here
]


class Why(Model):
    """``number``: of what the code counts (steps, machines, agents), where it counts something."""

    code: Code
    text: str
    number: int | None = None


def why(dispatcher: Dispatcher, node: Node) -> Why:
    """Of a step that waits."""
    if node.state == "blocked":
        before = [
            other.name
            for other in node.sub.steps.values()
            if other.state in ("blocked", "ready", "running") and any(after is node for after, _ in other.after)
        ]
        return Why(code="after", text=f"comes after {_listed(before)}", number=len(before))
    group = dispatcher.group_for(node)
    if node.machine and not dispatcher.available >> group & 1:
        return _of_machines(dispatcher, node, group)
    wanted = f"that are {node.needs}" if node.needs else "here"
    agents = [agent for agent in dispatcher.agents.values() if agent.mask >> group & 1]
    there = [agent for agent in agents if agent.link is not None]
    takes = [agent for agent in there if agent.state == "online"]
    if not agents:
        return Why(code="no-agent", text=f"there are no agents {wanted}", number=0)
    if not there:
        return Why(
            code="agents-away", text=f"none of the {len(agents)} agents {wanted} is connected", number=len(agents)
        )
    if not takes:
        return Why(code="agents-drained", text=f"all agents {wanted} are drained", number=len(there))
    if any(agent.free > 0 for agent in takes):
        return Why(code="starting", text="starts now")
    slots = sum(agent.slots for agent in takes)
    return Why(code="agents-busy", text=f"all {slots} slots of agents {wanted} are busy", number=slots)


def _of_machines(dispatcher: Dispatcher, node: Node, group: int) -> Why:
    """Of a step that wants a machine and could have none now."""
    pool = dispatcher.machines
    if not (like := pool.like(group)):
        return Why(code="no-machine", text=f"no machine of the pool is {node.machine}", number=0)
    if not (may := pool.fits(group)):
        if len(like) == 1:
            text = f"the one machine that is {node.machine} takes no steps of {node.sub.person}'s"
        else:
            text = f"none of the {len(like)} machines that are {node.machine} takes steps of {node.sub.person}'s"
        if lent := len(like & pool.lent):
            text += f"; {'it has' if len(like) == 1 else f'{lent} of them have'} a system that a holder booted"
        return Why(code="machines-barred", text=text, number=len(like))
    sound = may - pool.down
    that_may = "" if may == like else f" and that {node.sub.person} may have"
    if not sound:
        return Why(code="machines-down", text=f"{_all_of(may, node, that_may)} broken, suspect or off", number=len(may))
    if short := sorted(pool.over[one] for one in sound & pool.over.keys()):
        rest = sound - pool.over.keys()
        how = "are in use, or are being switched on" if rest & pool.wakes.keys() else "are in use"
        others = f", and the others that are {node.machine} {how}" if rest else ""
        more = f" ({len(short)} machines are kept back)" if len(short) > 1 else ""
        return Why(code="machines-power", text=f"{short[0]}{more}{others}", number=len(short))
    asleep = sound & pool.wakes.keys()
    how = "in use"
    if asleep:
        soonest = min(pool.wakes[one].median for one in asleep)
        wakens = f"switched on for it, which takes about {duration(soonest)}"
        how = wakens if sound == asleep else f"in use, or {wakens}"
    return Why(code="machines-busy", text=f"{_all_of(sound, node, that_may)} {how}", number=len(sound))


def _all_of(ids: frozenset[str], node: Node, more: str = "") -> str:
    """``all 3 machines that are mem>=1TiB are``."""
    if len(ids) == 1:
        return f"the one machine that is {node.machine}{more} is"
    return f"all {len(ids)} machines that are {node.machine}{more} are"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
