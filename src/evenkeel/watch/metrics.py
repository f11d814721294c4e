"""Numbers for Prometheus: what drifted, what was repaired, how long it took to notice, whether the host answers.

One registry a process, so that a second watcher in one process (tests) has its own.  docs/reference/metrics.md is this
table for people (a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from evenkeel.errors import WrongInput
from evenkeel.watch.notice import Notice

_DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Fed with what a watcher says (:meth:`said`) and with the events and sweeps that it sees (:meth:`happened`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._isolated: dict[str, frozenset[int]] = {}
        self._up = Gauge("evenkeel_host_up", "1 while the host answers", ["host"], registry=self.registry)
        self._failing = Gauge(
            "evenkeel_check_failing",
            "1 while this check fails, 0 when it passes again",
            ["host", "check", "severity"],
            registry=self.registry,
        )
        self._drifts = Counter(
            "evenkeel_drifts", "Checks that began to fail", ["host", "subject"], registry=self.registry
        )
        self._repairs = Counter(
            "evenkeel_repairs", "Settings put back, or not", ["host", "outcome"], registry=self.registry
        )
        self._lost = Counter("evenkeel_connections_lost", "Connections lost", ["host"], registry=self.registry)
        self._events = Counter("evenkeel_events", "Events of the host", ["host", "kind"], registry=self.registry)
        self._interrupts = Counter(
            "evenkeel_isolated_interrupts",
            "Device interrupts on isolated CPUs, in intervals in which one fired",
            ["host"],
            registry=self.registry,
        )
        self._sweep = Gauge(
            "evenkeel_last_sweep_timestamp_seconds",
            "When every check was made last, by the clock of the machine that watches",
            ["host"],
            registry=self.registry,
        )
        self._delay = Histogram(
            "evenkeel_detection_seconds",
            "From an event on the host to the end of the look that proved the drift, by the host's clock",
            ["host"],
            buckets=_DELAYS_S,
            registry=self.registry,
        )

    def begin(self, host: str, isolated: frozenset[int]) -> None:
        """Name the host, so that its numbers are there, and 0, before anything happens."""
        self._isolated[host] = isolated
        self._up.labels(host).set(0)
        for counter in (self._lost, self._interrupts):
            counter.labels(host)
        for outcome in ("repaired", "not repaired"):
            self._repairs.labels(host, outcome)

    def said(self, notice: Notice) -> None:
        match notice.kind:
            case "watching" | "back":
                self._up.labels(notice.host).set(1)
            case "lost":
                self._up.labels(notice.host).set(0)
                self._lost.labels(notice.host).inc()
            case "repaired" | "not repaired":
                self._repairs.labels(notice.host, notice.kind).inc()
            case "drifted" | "gone again" | "not checked" if notice.check is not None:
                failing = notice.kind == "drifted"
                self._failing.labels(notice.host, notice.check.id, notice.check.severity).set(failing)
                if failing:
                    self._drifts.labels(notice.host, notice.check.subject).inc()
                    if notice.delay_s is not None:
                        self._delay.labels(notice.host).observe(notice.delay_s)

    def happened(self, host: str, event: dict[str, Any] | None) -> None:
        """``event`` None: a sweep is done."""
        if event is None:
            self._sweep.labels(host).set_to_current_time()
            return
        self._events.labels(host, event["kind"]).inc()
        if event["kind"] == "interrupts":
            isolated = self._isolated.get(host, frozenset())
            counts = (n for row in event["rows"] for cpu, n in row["counts"].items() if int(cpu) in isolated)
            self._interrupts.labels(host).inc(sum(counts))


@contextmanager
def served(metrics: Metrics, where: str) -> Iterator[int]:
    """Answer at http://``where``/metrics; gives the port.  ``where``: ``9100`` (this machine only) or ``ADDRESS:9100``.

    Raises WrongInput for a place where nobody can listen.
    """
    address, _, port = where.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise WrongInput(f"--metrics {where}: not a port", hint="write 9153, or 0.0.0.0:9153 for all addresses")
    try:
        server, thread = start_http_server(int(port), address.strip("[]") or "127.0.0.1", metrics.registry)
    except OSError as error:
        raise WrongInput(
            f"--metrics {where}: {error.strerror or error}", hint="is another one listening there?"
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
