"""The catalogue of rules, one module per subject, and how they become settings.

Adding a rule: write its function and its :class:`Rule` in the module of its subject; it is listed here by itself.
What a rule yields ``on_request`` is left alone until an override gives it a value.  A rule with a ``consent`` sets
nothing until the owner of the host has given it: the plan says what it would bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evenkeel.documents.plan import (
    BootArgument,
    FileValue,
    GuestDefinition,
    InterruptAffinity,
    Note,
    Setting,
    Target,
)
from evenkeel.documents.site import Override
from evenkeel.plan.problems import Problems, did_you_mean
from evenkeel.plan.rules import (
    clock,
    division,
    guests,
    inside,
    interrupts,
    isolation,
    kvm,
    logs,
    memory,
    mitigations,
    network,
    owners,
    platform,
    power,
    ptp,
    rdt,
    realtime,
    speedselect,
    workqueues,
)
from evenkeel.plan.rules.rule import Context, Rule, Wanted

# Owners come first: TuneD takes its own settings back when it is stopped.
_SUBJECTS = (
    division,
    isolation,
    owners,
    platform,
    memory,
    network,
    interrupts,
    workqueues,
    clock,
    power,
    speedselect,
    rdt,
    ptp,
    kvm,
    mitigations,
    logs,
    realtime,
    guests,
    inside,
)

#: Every rule, in the order in which its settings are written within their phase.
CATALOGUE: tuple[Rule, ...] = tuple(rule for subject in _SUBJECTS for rule in subject.RULES)


def rule_by_id(identifier: str) -> Rule | None:
    return next((rule for rule in CATALOGUE if rule.id == identifier), None)


def settings(context: Context, problems: Problems) -> tuple[list[Setting], list[Note]]:
    """All settings that the rules want for a host, with its owner's overrides; and what cannot be a setting."""
    found: list[Setting] = []
    notes: list[Note] = []
    left_alone: dict[str, Setting] = {}
    for rule in CATALOGUE:
        if not rule.applies(context):
            continue
        wanted = list(rule.compute(context))
        optional = {one.id: one for one in (_setting(rule, value, context) for value in wanted if value.on_request)}
        left_alone |= optional
        found += [setting for setting in optional.values() if _asked_for(setting, context)]
        wanted = [value for value in wanted if not value.on_request]
        if rule.consent is None or rule.consent in context.wish.consents:
            found += [_setting(rule, value, context) for value in wanted]
        elif any(value.status == "change" for value in wanted):
            notes.append(_consent_missing(rule, wanted))
        notes += rule.note(context)
    notes += [*_unknown_arguments(context, found), *_idle_consents(context, found)]
    found, switched_off = _override(context, found, left_alone, problems)
    paths = [setting.target.path for setting in found if isinstance(setting.target, FileValue)]
    return found, [*notes, *owners.files_note(context, paths), *switched_off]


def _asked_for(setting: Setting, context: Context) -> bool:
    """Whether the owner gives a value to what the rule leaves alone by default."""
    overrides = context.wish.overrides
    return any(one in overrides and overrides[one].value is not None for one in (setting.id, setting.rule))


def _consent_missing(rule: Rule, wanted: Iterable[Wanted]) -> Note:
    values = [f"{describe_target(one.target)} = {one.new or '(set)'}" for one in wanted if one.status == "change"]
    more = ", ..." if len(values) > 3 else ""
    return Note(
        rule=rule.id,
        text=f"not set, since no goal implies it: {', '.join(values[:3])}{more}. It would bring: {rule.brings}. "
        f"The price: {rule.risk}. To take it, write under the host: consents: {{ {rule.consent}: {{ because: ... }} }}",
    )


def _idle_consents(context: Context, found: Iterable[Setting]) -> Iterable[Note]:
    """A consent that changes nothing here must not look as if it did."""
    used = {setting.rule for setting in found}
    for key, consent in sorted(context.wish.consents.items()):
        mine = [rule.id for rule in CATALOGUE if rule.consent == key]
        if mine and not used.intersection(mine):
            yield Note(rule=mine[0], text=f"the consent {key} ({consent.because}) has nothing to change on this host.")


def _setting(rule: Rule, wanted: Wanted, context: Context) -> Setting:
    given = context.wish.consents.get(rule.consent) if rule.consent else None
    return Setting(
        id=f"{rule.id}:{wanted.suffix}" if wanted.suffix else rule.id,
        rule=rule.id,
        title=rule.title,
        target=wanted.target,
        old=wanted.old,
        new=wanted.new,
        status=wanted.status,
        phase=rule.phase,
        disturbance=rule.disturbance,
        reason=wanted.reason + (f"; the owner consents to it: {given.because}" if given else ""),
        inputs=wanted.inputs,
        verification=rule.verification,
        risk=rule.risk,
        source=rule.source,
    )


def _unknown_arguments(context: Context, found: Iterable[Setting]) -> Iterable[Note]:
    keys = {setting.target.key for setting in found if isinstance(setting.target, BootArgument)}
    for text in context.facts.kernel.unknown_parameters:
        if text.partition("=")[0] in keys:
            yield Note(
                rule="H-LINT",
                text=f"kernel {context.facts.kernel.release} said at boot that it does not know {text}: the setting "
                "has no effect on this kernel.",
            )


def _override(
    context: Context, found: list[Setting], left_alone: Mapping[str, Setting], problems: Problems
) -> tuple[list[Setting], list[Note]]:
    """Replace or drop what the owner of the host decides himself; the reason says so."""
    about = f"host {context.host}"
    notes: list[Note] = []
    for identifier, override in sorted(context.wish.overrides.items()):
        mine = [setting for setting in found if identifier in (setting.id, setting.rule)]
        if not mine:
            # A rule that wants nothing here may be right on the next kernel; a misspelt setting beside others is not.
            base = identifier.partition(":")[0]
            beside = any(one.partition(":")[0] == base for one in (*left_alone, *(setting.id for setting in found)))
            if identifier in left_alone or (rule_by_id(base) and (identifier == base or not beside)):
                text = f"the override of {identifier} ({override.because}) has nothing to change on this host."
                notes.append(Note(rule=base, text=text))
            else:
                known = {rule.id for rule in CATALOGUE} | {setting.id for setting in found} | left_alone.keys()
                problems.add(about, f"overrides: there is no rule {identifier}", did_you_mean(identifier, known))
            continue
        if override.off:
            if any(isinstance(setting.target, GuestDefinition) for setting in mine):
                problems.add(
                    about,
                    f"overrides: {identifier} cannot be off, a guest must be defined",
                    "take the guest out of the site instead",
                )
                continue
            found = [setting for setting in found if setting not in mine]
            notes += [
                Note(
                    rule=setting.rule,
                    text=f"{setting.id} is switched off by the owner ({override.because}); the rule would set "
                    f"{describe_target(setting.target)} to {setting.new!r}.",
                )
                for setting in mine
            ]
        elif override.value is not None:
            found = _replace(about, identifier, override, mine, found, left_alone, problems)
    return found, notes


def _replace(
    about: str,
    identifier: str,
    override: Override,
    mine: list[Setting],
    found: list[Setting],
    left_alone: Mapping[str, Setting],
    problems: Problems,
) -> list[Setting]:
    if len(mine) > 1:
        problems.add(
            about,
            f"overrides: {identifier} is {len(mine)} settings, and one value cannot be meant for all",
            f"name one of {', '.join(setting.id for setting in mine[:6])}{', ...' if len(mine) > 6 else ''}",
        )
        return found
    (old,) = mine
    if not isinstance(old.target, FileValue | BootArgument | InterruptAffinity):
        problems.add(
            about,
            f"overrides: {identifier} has no value of its own",
            "change the guest in the site, or write off: true",
        )
        return found
    value = override.value or ""
    target: Target = old.target
    if isinstance(target, BootArgument) and target.effective_value is not None:
        # What the kernel would show for another value is not known, so only the command line is compared.
        target = target.model_copy(update={"effective": None, "effective_value": None})
    same = target.matches(old.old, value) if isinstance(target, FileValue) else old.old == value
    else_ = "leave it alone" if old.id in left_alone else f"set {old.new!r}"
    new = old.model_copy(
        update={
            "target": target,
            "new": value,
            "status": old.status if old.status == "absent" else "satisfied" if same else "change",
            "reason": f"the owner sets it: {override.because} (the rule would {else_}: {old.reason})",
        }
    )
    return [new if setting is old else setting for setting in found]


def describe_target(target: Target) -> str:
    """What a setting writes to, in a few words."""
    match target.type:
        case "file":
            return target.path
        case "boot":
            return f"boot argument {target.after + ' ' if target.after else ''}{target.key}"
        case "interrupt":
            return f"interrupt {target.action}"
        case "thread":
            return f"kernel thread {target.name}"
        case "unit":
            return f"unit {target.unit}"
        case "channels":
            return f"channels of {target.nic}"
        case "service":
            return f"place of {target.unit}"
        case "guest":
            return f"guest {target.guest}"
        case "partition":
            return f"partition of guest {target.guest} vCPU {target.vcpu}"
        case "guest_thread":
            return f"thread of guest {target.guest} vCPU {target.vcpu}"
