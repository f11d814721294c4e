"""How this lab reaches its NetBox: ``netbox.yaml`` in the folder of the lab.  Reads files; asks nobody.

Secrets are not in that file: it names a file that holds one, or a sealed secret of the lab.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, Field

from evenkeel.documents.base import Model
from evenkeel.documents.quantity import Nanoseconds
from evenkeel.documents.yamltext import read_model
from evenkeel.errors import Where, WrongInput
from evenkeel.lab import secrets
from evenkeel.lab.lab import Lab
from evenkeel.lab.netbox import fields as known_fields
from evenkeel.lab.netbox.client import NetBox
from evenkeel.lab.netbox.compare import Owner

FILE = "netbox.yaml"


class FieldSettings(Model):
    """``owner``: who is right.  ``netbox``: where NetBox keeps it, as ``custom_fields.NAME``."""

    owner: Owner | None = None
    netbox: str | None = Field(default=None, pattern=r"[a-z_]+(\.[a-z0-9_]+)?")


class Settings(Model):
    """``token``, ``webhook_secret``: ``file:PATH`` or ``secret:NAME``."""

    # Defaults are numbers, and a number written by hand is refused because it has no unit.
    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"), validate_default=False)

    url: str
    token: str = Field(pattern=r"(file|secret):.+")
    webhook_secret: str | None = Field(default=None, pattern=r"(file|secret):.+")
    ca_file: str | None = None
    write_to_old: bool = False
    incremental_every: Nanoseconds = 5 * 60 * 10**9
    full_every: Nanoseconds = 24 * 3600 * 10**9
    fields: dict[str, FieldSettings] = {}

    def table(self) -> tuple[known_fields.Field, ...]:
        return known_fields.table(
            {name: one.owner for name, one in self.fields.items() if one.owner},
            {name: one.netbox for name, one in self.fields.items() if one.netbox},
        )


def load(lab: Lab) -> Settings:
    """Raises WrongInput when there is no such file, with the place of what is wrong in it."""
    path = lab.folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WrongInput(
            "this lab has no NetBox", hint=f"write {path} (docs/how-to/lab-netbox.md says what goes in)"
        ) from None
    settings, places = read_model(Settings, text, str(path))
    known = {field.name for field in known_fields.TABLE}
    for name in settings.fields:
        if name not in known:
            raise WrongInput(
                f"no field {name!r}",
                where=places.nearest(("fields", name)),
                hint=f"fields are {', '.join(sorted(known))}",
            )
    return settings


def configured(lab: Lab) -> bool:
    return (lab.folder / FILE).exists()


def client(lab: Lab, settings: Settings) -> NetBox:
    return NetBox(settings.url, secret(lab, settings.token), ca=settings.ca_file)


@contextmanager
def connected(lab: Lab, config: Settings, given: NetBox | None) -> Iterator[NetBox]:
    """The given client, which stays open; or one of our own, which does not."""
    if given is not None:
        yield given
    else:
        with client(lab, config) as own:
            yield own


def secret(lab: Lab, where: str) -> str:
    """What ``file:PATH`` or ``secret:NAME`` holds, without the newline at its end."""
    kind, _, name = where.partition(":")
    if kind == "file":
        path = Path(name).expanduser()
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise WrongInput(f"cannot read the secret: {error.strerror}", where=Where(str(path))) from None
    return secrets.credentials(lab, name).password
