"""Log-in by OIDC: code flow with PKCE, by Authlib; from the provider's answer to a principal, or to why not.

Imported only when the settings name a provider: Authlib takes half a second.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from joserfc.errors import JoseError
from starlette.requests import Request
from starlette.responses import Response

from evenkeel.errors import Where, WrongInput
from evenkeel.lab import people
from evenkeel.lab.lab import Lab
from evenkeel.lab.login import NoLogin
from evenkeel.lab.settings import Oidc

with warnings.catch_warnings():
    import authlib.deprecate  # type: ignore[import-untyped]  # noqa: F401  it asks for all its warnings to be shown

    warnings.simplefilter("ignore")  # it wants httpx2, and tells every user so
    from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]
    from authlib.integrations.base_client.errors import MismatchingStateError, OAuthError  # type: ignore[import-untyped]
    from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]


class Provider:
    """The one that the settings name.  Discovery is fetched when somebody logs in, not before."""

    def __init__(self, settings: Oidc) -> None:
        self.settings = settings
        secret = _secret(settings)
        self._client = OAuth().register(
            "lab",
            server_metadata_url=settings.issuer.rstrip("/") + "/.well-known/openid-configuration",
            client_id=settings.client_id,
            client_secret=secret,
            client_kwargs={
                "scope": settings.scopes,
                "code_challenge_method": "S256",
                "timeout": 10,
                **({} if secret else {"token_endpoint_auth_method": "none"}),
            },
        )

    async def begin(self, request: Request, back: str) -> Response:
        """Send the browser to the provider, to come back to the address ``back``."""
        try:
            answer: Response = await self._client.authorize_redirect(request, back)
        except (httpx.HTTPError, AuthlibBaseError, ValueError, KeyError) as error:
            raise self._unreachable(error) from None
        return answer

    async def claims(self, request: Request) -> Mapping[str, Any]:
        """What the provider says of who came back, its signature checked.  Raises NoLogin that names the cause."""
        try:
            token = await self._client.authorize_access_token(request)
            found: dict[str, Any] = dict(token.get("userinfo") or {})
            if not found:
                raise NoLogin("the provider sent no id_token", hint="is `openid` among the scopes of the settings?")
            if self.settings.groups not in found or self.settings.name not in found:
                found = {**(await self._client.userinfo(token=token)), **found}
        except MismatchingStateError:
            raise NoLogin("the log-in was begun in another browser, or too long ago", hint="begin it again") from None
        except OAuthError as error:
            what = f"{error.error}: {error.description}" if error.description else str(error.error)
            raise NoLogin(
                f"the provider {self.settings.issuer} refused the log-in: {what}", hint="its log has the details"
            ) from None
        except (JoseError, AuthlibBaseError) as error:
            raise NoLogin(
                f"what the provider {self.settings.issuer} sent cannot be trusted: {error}",
                hint="do its clock, issuer and client_id agree with the settings of the lab?",
            ) from None
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise self._unreachable(error) from None
        return found

    def let_in(self, lab: Lab, claims: Mapping[str, Any]) -> str:
        """Name of the principal that the claims describe, noted with its roles.  Raises NoLogin, Forbidden: why not."""
        return let_in(lab, self.settings, claims)

    def _unreachable(self, error: Exception) -> NoLogin:
        what = str(error) or type(error).__name__
        return NoLogin(
            f"the provider {self.settings.issuer} cannot be used: {what}",
            hint="that is no fault of your account; does the lab's machine reach it?",
        )


def _secret(settings: Oidc) -> str | None:
    if settings.client_secret_file is None:
        return None
    path = Path(settings.client_secret_file)
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise WrongInput(f"the OIDC secret cannot be read: {error}", where=Where(str(path))) from None


def let_in(lab: Lab, settings: Oidc, claims: Mapping[str, Any]) -> str:
    """Name of the principal that the claims describe, noted with its roles and teams.  Raises NoLogin: why not."""
    name = claims.get(settings.name)
    if not isinstance(name, str) or not name:
        known = ", ".join(sorted(str(claim) for claim in claims))
        raise NoLogin(
            f"the provider sent no {settings.name!r}, by which the lab would call you",
            hint=f"set `name` below `oidc` to one of what it sent: {known}",
        )
    listed = claims.get(settings.groups) or []
    groups = [str(group) for group in (listed if isinstance(listed, list) else [listed])]
    roles = {settings.roles[group] for group in groups if group in settings.roles}
    if not roles and settings.role:
        roles = {settings.role}
    if not roles:
        raise NoLogin(
            f"{name} is in no group that may use this lab; the provider named "
            + (", ".join(sorted(groups)) or f"no groups at all (claim {settings.groups!r})"),
            hint=f"groups that may: {', '.join(sorted(settings.roles)) or 'none are in the settings'}",
        )
    teams = [group for group in groups if any(fnmatch.fnmatchcase(group, wanted) for wanted in settings.teams)]
    shown, mail = str(claims.get("name") or ""), str(claims.get("email") or "")
    link, issuer = settings.link_local, settings.issuer
    people.logged_in(lab, name, issuer=issuer, shown=shown, mail=mail, roles=roles, teams=teams, link=link)
    return name
