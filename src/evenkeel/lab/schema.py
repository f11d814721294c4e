"""The tables of the lab, for SQLite and PostgreSQL alike.  Names and columns only; no queries here.

Times are integer nanoseconds since 1970 (UTC), durations integer nanoseconds, sizes bytes.  Every change of a row that
a person could ask about also appends to ``event`` (:meth:`evenkeel.lab.store.Store.event`).  A change of this module
needs a migration: while nothing was released, ``python -m tools.lab_migration`` makes the one there is anew.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
#: SQLite counts a key by itself only when its type is spelled INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


# -- people -------------------------------------------------------------------------------------------------------

#: ``issuer``: of OIDC, for those who log in by it; empty: users of the service's machine, and services.
principal = Table(
    "principal",
    metadata,
    Column("name", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("issuer", String, nullable=False, server_default=""),
    Column("shown", String, nullable=False, server_default=""),
    Column("mail", String, nullable=False, server_default=""),
    Column("roles", JSON, nullable=False),
    Column("teams", JSON, nullable=False),
    Column("seen_ns", BigInteger),
    Column("version", Integer, nullable=False, server_default="1"),
    _one_of("kind", "person", "service"),
)

token = Table(
    "token",
    metadata,
    _id(),
    Column("principal", ForeignKey("principal.name"), nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)

#: What was answered to a write that carried an Idempotency-Key.
idempotency = Table(
    "idempotency",
    metadata,
    Column("principal", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("request_sha256", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)

saved_search = Table(
    "saved_search",
    metadata,
    _id(),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("predicate", Text, nullable=False),
    Column("shared", Boolean, nullable=False),
    UniqueConstraint("owner", "name"),
)

# -- the one log --------------------------------------------------------------------------------------------------

#: Never changed, and deleted by age alone, the oldest first, without a gap (:mod:`evenkeel.lab.records`): audit,
#: history, server-sent events and webhooks all read it.
event = Table(
    "event",
    metadata,
    Column("seq", _Id, primary_key=True, autoincrement=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("type", String, nullable=False),
    Column("object", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "object", "object_id", "seq"),
    Index(None, "type", "seq"),
    sqlite_autoincrement=True,
)

#: ``after``: number of the last event that was delivered; ``failing_ns``: since when it is not answered.
#: The key that deliveries are signed with is made from ``salt`` and a file of the service.
webhook = Table(
    "webhook",
    metadata,
    _id(),
    Column("url", String, nullable=False),
    Column("types", JSON, nullable=False),
    Column("salt", String, nullable=False),
    Column("made_by", String, nullable=False),
    Column("made_ns", BigInteger, nullable=False),
    Column("after", BigInteger, nullable=False),
    Column("next_ns", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failing_ns", BigInteger),
    Column("last", Text, nullable=False, server_default=""),
    Column("off", Boolean, nullable=False, server_default=text("false")),
)

#: What was sent to a receiver lately; ``seq`` 0: only to try it.  ``status``: None when nothing was answered.
webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    _id(),
    Column("webhook_id", ForeignKey("webhook.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("type", String, nullable=False),
    Column("status", Integer),
    Column("took_ns", BigInteger, nullable=False),
    Column("wrong", Text, nullable=False, server_default=""),
    Index(None, "webhook_id", "id"),
)

# -- the pool -----------------------------------------------------------------------------------------------------

#: ``id`` outlives renumbering, renaming and moves; facts tell it again by serial number, board and MAC addresses.
#: ``system_of``: who booted, from a source of their own, what it may have for a system; empty: it is its owner's.
#: ``medium``: URL of an image of theirs that may be in its virtual drive; empty: none.
machine = Table(
    "machine",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("site", String, nullable=False, server_default=""),
    Column("enclosure_id", ForeignKey("machine.id")),
    Column("owner", String, nullable=False, server_default=""),
    Column("team", String, nullable=False, server_default=""),
    Column("note", Text, nullable=False, server_default=""),
    Column("state", String, nullable=False),
    Column("state_since_ns", BigInteger, nullable=False),
    Column("state_reason", Text, nullable=False, server_default=""),
    Column("identity", JSON, nullable=False),
    Column("policy", JSON, nullable=False),
    Column("system_of", String, nullable=False, server_default=""),
    Column("medium", Text, nullable=False, server_default=""),
    Column("netbox_id", Integer, unique=True),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("registered_ns", BigInteger, nullable=False),
    Index("ix_machine_medium", "medium", sqlite_where=text("medium != ''"), postgresql_where=text("medium != ''")),
    _one_of("state", "ready", "claimed", "preparing", "suspect", "broken", "off", "retired"),
)

#: Facts flattened, one row a value: ``num`` when it is a number, ``text`` always.  See lab.predicate for the keys.
fact = Table(
    "fact",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("text", String, primary_key=True),
    Column("num", Float),
    Index(None, "key", "num", "machine_id"),
    Index(None, "key", "text", "machine_id"),
    sqlite_with_rowid=False,
)

#: Whole Facts documents, as the probe wrote them.
snapshot = Table(
    "snapshot",
    metadata,
    _id(),
    Column("machine_id", ForeignKey("machine.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("document", Text, nullable=False),
    Index(None, "machine_id", "at_ns"),
)

#: How a machine is reached.  ``secret``: name in table secret; ``options``: of the driver, without secrets.
endpoint = Table(
    "endpoint",
    metadata,
    _id(),
    Column("machine_id", ForeignKey("machine.id"), nullable=False),
    Column("kind", String, nullable=False),
    Column("driver", String, nullable=False),
    Column("address", String, nullable=False),
    Column("secret", String),
    Column("options", JSON, nullable=False),
    _one_of("kind", "ssh", "bmc", "pdu", "hypervisor", "console"),
    UniqueConstraint("machine_id", "kind", "address"),
)

#: Sealed with the key file of the service; its own permission (``secrets``).
secret = Table(
    "secret",
    metadata,
    Column("name", String, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("set_by", String, nullable=False),
    Column("set_ns", BigInteger, nullable=False),
)

#: The one claim table: reservations of people, machines of steps, maintenance, permanent ones.
#: ``predicate``: what is wanted (a name is ``name:host1``); ``machine_id``: what was given, or is promised.
#: ``until_ns``: None for permanent ones, and before it began; ``length_ns``: for how long it is wanted.
claim = Table(
    "claim",
    metadata,
    _id(),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("holder", String, nullable=False),
    Column("team", String, nullable=False, server_default=""),
    Column("predicate", Text, nullable=False),
    Column("machine_id", ForeignKey("machine.id")),
    Column("step_id", _Id),
    Column("reason", Text, nullable=False),
    Column("boot_source", JSON),
    Column("urgent", Boolean, nullable=False, server_default=text("false")),
    Column("requested_ns", BigInteger, nullable=False),
    Column("not_before_ns", BigInteger, nullable=False),
    Column("length_ns", BigInteger),
    Column("until_ns", BigInteger),
    Column("began_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("end_cause", String, nullable=False, server_default=""),
    Column("reminded_ns", BigInteger),
    Column("fencing", BigInteger, nullable=False, server_default="0"),
    Column("version", Integer, nullable=False, server_default="1"),
    _one_of("kind", "reservation", "step", "maintenance", "permanent"),
    _one_of("state", "waiting", "preparing", "active", "ended", "cancelled"),
    Index(None, "state", "not_before_ns"),
    Index(None, "holder", "state"),
    # Two at once on one machine are impossible, whatever the program does.
    Index(
        "uq_claim_machine_held",
        "machine_id",
        unique=True,
        sqlite_where=text("state IN ('preparing', 'active')"),
        postgresql_where=text("state IN ('preparing', 'active')"),
    ),
)

health = Table(
    "health",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("probe", String, primary_key=True),
    Column("at_ns", BigInteger, primary_key=True),
    Column("ok", Boolean, nullable=False),
    Column("latency_ns", BigInteger),
    Column("detail", Text, nullable=False, server_default=""),
)

#: ``health`` rolled up by the hour, when its rows are old.
health_hour = Table(
    "health_hour",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("probe", String, primary_key=True),
    Column("hour_ns", BigInteger, primary_key=True),
    Column("asked", Integer, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("latency_ns", BigInteger),
)

#: ``tried``: each method with what came of it; ``result``: done, failed, unknown.
power_event = Table(
    "power_event",
    metadata,
    _id(),
    Column("machine_id", ForeignKey("machine.id"), nullable=False),
    Column("action", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("took_ns", BigInteger),
    Column("tried", JSON, nullable=False),
    Column("result", String, nullable=False),
    Column("verified_by", String, nullable=False, server_default=""),
    Index(None, "machine_id", "at_ns"),
)

#: Power drawn, as BMC or PDU told it.
power_reading = Table(
    "power_reading",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("at_ns", BigInteger, primary_key=True),
    Column("watts", Float, nullable=False),
    Column("source", String, nullable=False),
)

#: The least and the most of ``power_reading``, by machine.
power_draw = Table(
    "power_draw",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("least", Float, nullable=False),
    Column("most", Float, nullable=False),
)

#: What the machines of a site may draw together, as :mod:`evenkeel.lab.power_budget` counts.
power_budget = Table(
    "power_budget",
    metadata,
    Column("site", String, primary_key=True),
    Column("watts", Integer, nullable=False),
    Column("assumed_watts", Integer, nullable=False),
    Column("set_by", String, nullable=False),
    Column("set_ns", BigInteger, nullable=False),
)

#: Every field that a sync or a push overwrote, with undo.  ``side``: whose value it was, ``lab`` or ``netbox``.
#: ``state`` intended: written down before NetBox was asked, so that no crash can lose the old value.
field_change = Table(
    "field_change",
    metadata,
    _id(),
    Column("run", ForeignKey("netbox_run.id"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("side", String, nullable=False),
    Column("object", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("field", String, nullable=False),
    Column("old", JSON),
    Column("new", JSON),
    Column("source", String, nullable=False),
    Column("state", String, nullable=False, server_default="done"),
    Column("undone_by", String),
    Column("undone_ns", BigInteger),
    _one_of("side", "lab", "netbox"),
    _one_of("state", "intended", "done", "failed", "unknown"),
    Index(None, "object", "object_id", "at_ns"),
)

#: What was last agreed upon with NetBox, field by field: the base of the three-way compare.
netbox_base = Table(
    "netbox_base",
    metadata,
    Column("object", String, primary_key=True),
    Column("object_id", String, primary_key=True),
    Column("field", String, primary_key=True),
    Column("value", JSON),
    Column("at_ns", BigInteger, nullable=False),
)

#: What NetBox said of a machine last: ``last_updated`` is its own time, ``gone_ns`` since when it has it no more.
netbox_device = Table(
    "netbox_device",
    metadata,
    Column("machine_id", ForeignKey("machine.id"), primary_key=True),
    Column("last_updated", String, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Column("gone_ns", BigInteger),
)

#: ``newest``: the latest change that NetBox told of, by its own clock; the next incremental sync begins there.
netbox_run = Table(
    "netbox_run",
    metadata,
    _id(),
    Column("kind", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("state", String, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("newest", String, nullable=False, server_default=""),
    Column("counts", JSON, nullable=False),
    Column("conflicts", JSON, nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    _one_of("kind", "full", "incremental", "webhook", "import", "push", "undo"),
    _one_of("state", "running", "done", "failed"),
    Index(None, "started_ns"),
)

#: Webhooks that were taken, by the hash of their bodies: the same one again does nothing.
netbox_delivery = Table(
    "netbox_delivery",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
)

# -- the queue ----------------------------------------------------------------------------------------------------

#: ``spec``: the whole graph as it was submitted.
submission = Table(
    "submission",
    metadata,
    _id(),
    Column("name", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("submitter", String, nullable=False),
    Column("team", String, nullable=False, server_default=""),
    Column("spec", JSON, nullable=False),
    Column("urgent", Boolean, nullable=False, server_default=text("false")),
    Column("reason", Text, nullable=False, server_default=""),
    Column("state", String, nullable=False),
    Column("submitted_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("version", Integer, nullable=False, server_default="1"),
    _one_of("state", "open", "passed", "failed", "cancelled"),
    Index(None, "state", "submitted_ns"),
    Index(None, "submitter", "submitted_ns"),
)

#: ``state`` blocked: waits for other steps; ready: waits for an agent (and a machine); skipped: its edge said no.
step = Table(
    "step",
    metadata,
    _id(),
    Column("submission_id", ForeignKey("submission.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("spec", JSON, nullable=False),
    # What the dispatcher needs of ``spec``, so that a restart with 100,000 steps reads no JSON.
    Column("needs", Text, nullable=False, server_default=""),
    Column("machine", Text, nullable=False, server_default=""),
    Column("expected", Text, nullable=False, server_default=""),
    Column("timeout_ns", BigInteger),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("any_path", Boolean, nullable=False, server_default=text("false")),
    Column("state", String, nullable=False),
    Column("cause", Text, nullable=False, server_default=""),
    # Who asked to end it while it runs; the agent has not answered yet.
    Column("cancel_by", String, nullable=False, server_default=""),
    Column("ready_ns", BigInteger),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("output", JSON),
    _one_of("state", "blocked", "ready", "running", "passed", "failed", "cancelled", "skipped"),
    UniqueConstraint("submission_id", "name"),
    Index(None, "state", "ready_ns"),
)

#: ``condition``: of the state and the output of the step before (lab.step.holds); empty: it passed.
edge = Table(
    "edge",
    metadata,
    Column("before_id", ForeignKey("step.id"), primary_key=True),
    Column("after_id", ForeignKey("step.id"), primary_key=True),
    Column("condition", Text, nullable=False, server_default=""),
    Index(None, "after_id"),
)

attempt = Table(
    "attempt",
    metadata,
    _id(),
    Column("step_id", ForeignKey("step.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("agent", String, nullable=False),
    Column("claim_id", ForeignKey("claim.id")),
    Column("fencing", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("exit", Integer),
    Column("cause", Text, nullable=False, server_default=""),
    Column("result", JSON),
    # Results with the same text here are of the same thing, and may be compared (lab.step.Use.same_key).
    Column("same", Text, nullable=False, server_default=""),
    # When the lab's policy took its log, and its result with its warnings; None: it did not.
    Column("log_removed_ns", BigInteger),
    Column("result_removed_ns", BigInteger),
    _one_of("state", "running", "passed", "failed", "lost", "cancelled", "timed-out"),
    UniqueConstraint("step_id", "number"),
    Index(None, "state", "agent"),
    Index(None, "same", "ended_ns"),
)

#: ``labels``: flat facts that predicates of steps are matched with.  ``local``: on the lab's own machine.
agent = Table(
    "agent",
    metadata,
    Column("name", String, primary_key=True),
    # Of its folder: another agent that takes its name has another one.
    Column("identity", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("local", Boolean, nullable=False),
    # Where it is on this machine: which process (evenkeel.lab.process).
    Column("process", String, nullable=False, server_default=""),
    Column("slots", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("state", String, nullable=False),
    Column("fencing", BigInteger, nullable=False),
    Column("hello_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    _one_of("state", "online", "lost", "drained", "gone"),
)

#: The bytes lie in a folder by their hash; only what a committed attempt names is kept.
artifact = Table(
    "artifact",
    metadata,
    _id(),
    Column("attempt_id", ForeignKey("attempt.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("media", String, nullable=False),
    # Asked for by the step; None: by the lab's policy.
    Column("retain_until_ns", BigInteger),
    Column("pinned_by", String, nullable=False, server_default=""),
    UniqueConstraint("attempt_id", "name"),
    Index(None, "sha256"),
)

#: Warnings of a build by signature, so that new ones can be told from old ones.
warning = Table(
    "warning",
    metadata,
    Column("attempt_id", ForeignKey("attempt.id"), primary_key=True),
    Column("signature", String, primary_key=True),
    Column("tool", String, nullable=False),
    Column("file", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("times", Integer, nullable=False),
)

#: Credits for urgent work, by month (its first moment, UTC).  ``credit_use`` says for what, and is shown to all.
credit = Table(
    "credit",
    metadata,
    Column("principal", String, primary_key=True),
    Column("period_ns", BigInteger, primary_key=True),
    Column("granted", Integer, nullable=False),
    Column("spent", Integer, nullable=False),
)

#: ``outcome`` beyond: asked for when no credit was left, and treated as any other.
credit_use = Table(
    "credit_use",
    metadata,
    _id(),
    Column("principal", String, nullable=False),
    Column("period_ns", BigInteger, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("object", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("outcome", String, nullable=False),
    _one_of("outcome", "spent", "beyond", "refunded"),
    Index(None, "object", "object_id"),
)

#: Durations learned by kind and key: the latest so many, in nanoseconds.
duration = Table(
    "duration",
    metadata,
    Column("kind", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("latest", JSON, nullable=False),
    Column("count", BigInteger, nullable=False),
)

#: What was foretold when, and what came.  ``object``: step or submission.  ``drawn``: the edges of the band before
#: they were moved by what earlier forecasts missed.  ``unknown``: in words, why there is no start or no end.
forecast = Table(
    "forecast",
    metadata,
    Column("object", String, primary_key=True),
    Column("object_id", _Id, primary_key=True),
    Column("made_ns", BigInteger, primary_key=True),
    Column("ahead", Integer, nullable=False),
    *(
        Column(f"{what}_{edge}_ns", BigInteger)
        for what in ("start", "end")
        for edge in ("p10", "p50", "p90", "drawn_p10", "drawn_p90")
    ),
    Column("unknown", Text, nullable=False, server_default=""),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    _one_of("object", "step", "submission"),
    Index(None, "object", "ended_ns"),
    sqlite_with_rowid=False,
)

#: Time that slots of agents stood idle while a step that some agent could take waited, by cause and hour.
idle = Table(
    "idle",
    metadata,
    Column("hour_ns", BigInteger, primary_key=True),
    Column("cause", String, primary_key=True),
    Column("idle_ns", BigInteger, nullable=False),
    Column("slots_ns", BigInteger, nullable=False),
)
