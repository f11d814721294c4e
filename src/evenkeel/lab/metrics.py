"""Numbers for Prometheus, read from the tables when they are asked for: there is nothing to keep in step.

docs/reference/lab-api.md lists them (a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy import Connection, and_, func, select

from evenkeel.lab import schema
from evenkeel.lab.lab import Lab

MEDIA = CONTENT_TYPE_LATEST
_S = 1e9


class _Tables(Collector):
    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self.lab.store.read() as connection:
            yield from _pool(connection)
            yield from _queue(connection, self.lab.now())
            yield from _idle(connection)
            written = CounterMetricFamily("evenkeel_lab_events", "Events written to the log")
            written.add_metric(
                [], connection.execute(select(func.coalesce(func.max(schema.event.c.seq), 0))).scalar_one()
            )
            yield written


def _counts(connection: Connection, name: str, text: str, table: str, *columns: str) -> Metric:
    chosen = schema.metadata.tables[table].c
    keys = [chosen[column] for column in columns]
    found = GaugeMetricFamily(name, text, labels=columns)
    for row in connection.execute(select(*keys, func.count()).group_by(*keys)):
        found.add_metric([str(value) for value in row[:-1]], row[-1])
    return found


def _pool(connection: Connection) -> Iterator[Metric]:
    yield _counts(connection, "evenkeel_lab_machines", "Machines by state", "machine", "state")
    yield _counts(connection, "evenkeel_lab_claims", "Claims of machines", "claim", "kind", "state")
    health, machine = schema.health, schema.machine
    last = select(health.c.machine_id, health.c.probe, func.max(health.c.at_ns).label("at_ns"))
    latest = last.group_by(health.c.machine_id, health.c.probe).subquery()
    same = and_(*(health.c[name] == latest.c[name] for name in ("machine_id", "probe", "at_ns")))
    query = select(machine.c.name, health.c.probe, health.c.ok).join(latest, same)
    query = query.join(machine, machine.c.id == health.c.machine_id)
    up = GaugeMetricFamily("evenkeel_lab_machine_up", "1 if its last probe was answered", labels=("machine", "probe"))
    for name, probe, ok in connection.execute(query):
        up.add_metric([name, probe], int(ok))
    yield up
    reading = schema.power_reading
    newest = select(reading.c.machine_id, func.max(reading.c.at_ns).label("at_ns")).group_by(reading.c.machine_id)
    latest = newest.subquery()
    same = and_(*(reading.c[name] == latest.c[name] for name in ("machine_id", "at_ns")))
    query = select(machine.c.name, reading.c.watts).join(latest, same)
    watts = GaugeMetricFamily("evenkeel_lab_machine_watts", "Power drawn, as it told last", labels=("machine",))
    for row in connection.execute(query.join(machine, machine.c.id == reading.c.machine_id)):
        watts.add_metric([row.name], row.watts)
    yield watts


def _queue(connection: Connection, now_ns: int) -> Iterator[Metric]:
    yield _counts(connection, "evenkeel_lab_steps", "Steps by state", "step", "state")
    yield _counts(connection, "evenkeel_lab_agents", "Agents by state", "agent", "state")
    step = schema.step.c
    oldest = connection.execute(select(func.min(step.ready_ns)).where(step.state == "ready")).scalar()
    waits = GaugeMetricFamily("evenkeel_lab_oldest_wait_seconds", "For how long the first of the ready steps waits")
    waits.add_metric([], (now_ns - oldest) / _S if oldest else 0)
    yield waits


def _idle(connection: Connection) -> Iterator[Metric]:
    idle = schema.idle.c
    name = "evenkeel_lab_idle_while_waiting_seconds"
    found = CounterMetricFamily(name, "Slots idle while a step waited that they could take", labels=("cause",))
    for cause, total in connection.execute(select(idle.cause, func.sum(idle.idle_ns)).group_by(idle.cause)):
        found.add_metric([cause], int(total) / _S)
    yield found


def exposition(lab: Lab) -> bytes:
    """All of them, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Tables(lab))
    return generate_latest(registry)
