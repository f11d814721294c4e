"""One turn of the dispatcher as changes of the database: what it decided, written in one transaction.

Runs in the writer's thread and touches nothing of the dispatcher's memory but ``claim_id`` of runs that start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from evenkeel.lab import artifacts, claims, durations, power_budget, protocol, results, schema
from evenkeel.lab.lab import Lab
from evenkeel.lab.live import Link, Run
from evenkeel.lab.predicate import Predicate

#: Ids that are asked for at once: what both databases take as parameters.
_ASK_IDS = 500
_step, _attempt, _sub = schema.step.c, schema.attempt.c, schema.submission.c
#: For each start what its agent is to be told; None where it cannot start after all.
Outcome = list[tuple[Run, protocol.Start | None]]


@dataclass
class Turn:
    """All changes of one commit, and what is to be said after it.

    ``ends``: parameters of ``_END_ATTEMPT``; ``documents``: attempt, step and Result document of those that have one;
    ``claimed``: steps that give their machine back, with the cause."""

    starts: list[Run] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    documents: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    end_messages: list[tuple[Link, protocol.Ended | protocol.Hello]] = field(default_factory=list)
    step_states: list[dict[str, Any]] = field(default_factory=list)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    agents: list[dict[str, Any]] = field(default_factory=list)
    durations: list[tuple[str, str, int]] = field(default_factory=list)
    claimed: list[tuple[int, str]] = field(default_factory=list)
    events: list[tuple[str, str, object, dict[str, Any]]] = field(default_factory=list)
    idle: list[dict[str, Any]] = field(default_factory=list)
    say: list[tuple[Link, protocol.FromLab]] = field(default_factory=list)
    seq: int = 0  # of the last event that was known when it was made
    holds: int = 0  # of the store then

    def empty(self) -> bool:
        parts = (self.starts, self.ends, self.step_states, self.submissions, self.agents, self.events, self.idle)
        return not any((*parts, self.say))

    def end_attempt(
        self, run: Run, now: int, state: str, exit: int | None, cause: str, result: Mapping[str, Any] | None
    ) -> None:
        self.ends.append(
            {"b_id": run.id, "b_state": state, "b_ended_ns": now, "b_exit": exit, "b_cause": cause, "b_result": result}
        )
        if result is not None:
            self.documents.append((run.id, run.node.id, dict(result)))

    def move_step(
        self,
        number: int,
        state: str,
        *,
        cause: str,
        ready_ns: int | None,
        ended_ns: int | None,
        output: Mapping[str, Any] | None,
    ) -> None:
        row = {"b_id": number, "b_state": state, "b_cause": cause, "b_ready_ns": ready_ns, "b_ended_ns": ended_ns}
        self.step_states.append(row | {"b_output": output})

    def tell(self, type_: str, object_: str, number: object, **data: Any) -> None:
        """Append to the one log."""
        self.events.append((type_, object_, number, data))


class Overtaken(Exception):
    """Somebody changed a submission since the turn was made, so it may say the opposite of what was acknowledged.

    Or the right to write was another's meanwhile."""


def write(connection: Connection, lab: Lab, turn: Turn) -> Outcome:
    now = lab.now()
    if turn.holds != lab.store.holds:
        raise Overtaken
    if (turn.step_states or turn.submissions) and connection.execute(_CHANGED_SINCE, {"seq": turn.seq}).first():
        raise Overtaken
    if turn.ends:
        connection.execute(_END_ATTEMPT, turn.ends)
    if turn.documents:
        _take_documents(connection, lab, turn)
    for step_id, cause in turn.claimed:
        claims.release_step(lab, connection, step_id, cause)
    if turn.step_states:
        connection.execute(_MOVE_STEP, turn.step_states)
    if turn.submissions:
        connection.execute(_END_SUBMISSION, turn.submissions)
    for row in turn.agents:
        _replace(connection, schema.agent, ("name",), row)
    durations.add(connection, turn.durations)
    for row in turn.idle:
        _add_idle(connection, row)
    outcome = _start(connection, lab, turn.starts) if turn.starts else []
    refused = {run.id for run, start in outcome if start is None}
    events = [
        {"at_ns": now, "actor": "lab", "type": type_, "object": object_, "object_id": str(id_), "data": data}
        for type_, object_, id_, data in turn.events
        if not (type_ == "step.started" and data["attempt"] in refused)
    ]
    if events:
        lab.store.events(connection, events)
    return outcome


def _take_documents(connection: Connection, lab: Lab, turn: Turn) -> None:
    specs = {row.id: row.spec for row in in_pieces(connection, _SPECS, [step for _, step, _ in turn.documents])}
    for attempt, step, document in turn.documents:
        wrong = results.take(connection, lab, attempt, specs[step], document)
        if wrong:
            # What the agent could be blamed for was found before (Dispatcher._wrong); it passed, with less to show.
            lab.store.event(connection, "lab", "attempt.incomplete", "attempt", attempt, why=wrong)


def _start(connection: Connection, lab: Lab, starts: list[Run]) -> Outcome:
    # Somebody may have cancelled a step, or taken a machine, since the choice was made.
    still = {row.id: row.spec for row in in_pieces(connection, _READY_SPECS, sorted(run.node.id for run in starts))}
    rooms = power_budget.rooms(connection) if any(run.node.machine for run in starts) else None
    for run in starts:
        node = run.node
        if node.id in still and node.machine:
            taken = claims.take_for_step(
                *(lab, connection),
                step_id=node.id,
                predicate=Predicate.parse(node.machine),
                holder=node.sub.person,
                team=node.sub.team,
                reason=f"step {node.name} of {node.sub.name}",
                length_ns=run.timeout_ns,
                likely=run.machine_id,
                rooms=rooms,
            )
            if taken is None:
                del still[node.id]
            else:
                run.claim_id = taken.claim_id
    going = [run for run in starts if run.node.id in still]
    if going:
        connection.execute(_INSERT_ATTEMPT, [_row_of(run) for run in going])
        connection.execute(
            _START_STEP,
            [{"b_id": run.node.id, "b_started_ns": run.started_ns, "b_attempts": run.node.attempts} for run in going],
        )
    said = _messages(connection, lab, going, still)
    return [(run, said.get(run.id)) for run in starts]


def _row_of(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "step_id": run.node.id,
        "number": run.node.attempts,
        "agent": run.agent,
        "claim_id": run.claim_id,
        "fencing": run.id,
        "state": "running",
        "started_ns": run.started_ns,
    }


def messages(connection: Connection, lab: Lab, runs: Iterable[Run]) -> dict[int, protocol.Start]:
    """What agents are told of these attempts, by their numbers."""
    by_step = {run.node.id: run for run in runs}
    specs = {row.id: row.spec for row in in_pieces(connection, _SPECS, sorted(by_step))}
    return _messages(connection, lab, by_step.values(), specs)


def _messages(
    connection: Connection, lab: Lab, runs: Iterable[Run], specs: Mapping[int, dict[str, Any]]
) -> dict[int, protocol.Start]:
    """``specs``: by step."""
    made = {}
    for run in runs:
        use = specs[run.node.id]
        if use.get("inputs"):
            use = {**use, "inputs": artifacts.fill_inputs(connection, lab, run.node.sub.id, use)}
        made[run.id] = protocol.Start(
            attempt=run.id,
            submission=run.node.sub.id,
            step=run.node.name,
            use=use,
            timeout_ns=run.timeout_ns,
            machine=_machine_of(connection, run.claim_id) if run.claim_id is not None else None,
        )
    return made


def _machine_of(connection: Connection, claim_id: int) -> dict[str, str]:
    """What a step may know of its machine: name, number of the claim that shields it, and where ssh finds it."""
    claim, machine, endpoint = schema.claim.c, schema.machine.c, schema.endpoint.c
    row = connection.execute(
        select(machine.id, machine.name, claim.fencing)
        .select_from(schema.claim.join(schema.machine, claim.machine_id == machine.id))
        .where(claim.id == claim_id)
    ).one()
    address = connection.scalar(
        select(endpoint.address).where(endpoint.machine_id == row.id, endpoint.kind == "ssh").limit(1)
    )
    told = {"id": row.id, "name": row.name, "fencing": str(row.fencing)}
    return told | ({"address": address} if address else {})


# -- small parts --------------------------------------------------------------------------------------------------


def in_pieces(connection: Connection, query: Any, ids: list[int]) -> Iterable[Any]:
    """Rows of a query with the parameter ``ids``, for any number of them."""
    for start in range(0, len(ids), _ASK_IDS):
        yield from connection.execute(query, {"ids": ids[start : start + _ASK_IDS]})


def _replace(connection: Connection, table: Any, keys: tuple[str, ...], row: dict[str, Any]) -> None:
    """Update the row with these keys, or insert it; in both kinds of database."""
    where = [table.c[key] == row[key] for key in keys]
    if not connection.execute(update(table).where(*where).values(row)).rowcount:
        connection.execute(insert(table).values(row))


def _add_idle(connection: Connection, row: Mapping[str, Any]) -> None:
    table = schema.idle.c
    added = connection.execute(
        update(schema.idle)
        .where(table.hour_ns == row["hour_ns"], table.cause == row["cause"])
        .values(idle_ns=table.idle_ns + row["idle_ns"], slots_ns=table.slots_ns + row["slots_ns"])
    )
    if not added.rowcount:
        connection.execute(insert(schema.idle).values(dict(row)))


_INSERT_ATTEMPT = insert(schema.attempt)
_SPECS = select(_step.id, _step.spec).where(_step.id.in_(bindparam("ids", expanding=True)))
_READY_SPECS = _SPECS.where(_step.state == "ready")
_CHANGED_SINCE = (
    select(schema.event.c.seq)
    .where(
        schema.event.c.seq > bindparam("seq"),
        schema.event.c.object == "submission",
        schema.event.c.type.in_(("submission.cancelled", "step.cancelled", "step.retried")),
    )
    .limit(1)
)
_END_ATTEMPT = (
    update(schema.attempt)
    .where(_attempt.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        ended_ns=bindparam("b_ended_ns"),
        exit=bindparam("b_exit"),
        cause=bindparam("b_cause"),
        result=bindparam("b_result"),
    )
)
_MOVE_STEP = (
    update(schema.step)
    .where(_step.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        cause=bindparam("b_cause"),
        ready_ns=bindparam("b_ready_ns"),
        ended_ns=bindparam("b_ended_ns"),
        output=bindparam("b_output"),
    )
)
_START_STEP = (
    update(schema.step)
    .where(_step.id == bindparam("b_id"))
    .values(state="running", cause="", started_ns=bindparam("b_started_ns"), attempts=bindparam("b_attempts"))
)
_END_SUBMISSION = (
    update(schema.submission)
    .where(_sub.id == bindparam("b_id"), _sub.state == "open")
    .values(state=bindparam("b_state"), ended_ns=bindparam("b_ended_ns"), version=_sub.version + 1)
)
