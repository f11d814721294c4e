"""A lab of its own for each test: SQLite in a folder, with a clock that stands unless it is told to move."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Dialect
from starlette.routing import BaseRoute

from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.api.app import Who, create_app
from evenkeel.lab.lab import Lab
from evenkeel.lab.settings import Settings
from evenkeel.lab.store import Store, create, sqlite_url


class Clock:
    """The wall clock, nanoseconds since 1970, from 2026-11-29 10:00 UTC; and a steady one, which never jumps."""

    def __init__(self) -> None:
        self.at_ns = 1_795_946_400 * 10**9
        self.steady_ns = 3 * 10**9  # of a machine that has just booted: nothing may take it for a date

    def __call__(self) -> int:
        return self.at_ns

    def steady(self) -> int:
        return self.steady_ns

    def move(self, seconds: float) -> None:
        """Time passes."""
        self.at_ns += round(seconds * 1e9)
        self.steady_ns += round(seconds * 1e9)

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock; no time passes."""
        self.at_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


_ROUTES: list[BaseRoute] = []
_STATEMENTS: dict[Any, Any] = {}
_DIALECTS: list[Dialect] = []


@cache
def _empty() -> bytes:
    """A database with all tables and no rows: to make them anew for each of hundreds of tests takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lab.db"
        with Store(sqlite_url(file)) as store:
            create(store)
        return file.read_bytes()


@contextmanager
def a_lab(folder: Path, clock: Clock) -> Iterator[Lab]:
    """A lab in ``folder``, for tests that need more than one."""
    (folder / "lab.db").write_bytes(_empty())
    with Store(sqlite_url(folder / "lab.db"), clock=clock, steady=clock.steady) as store:
        _share_statements(store)
        yield Lab(folder, store, Settings(local_role="user"))


def _share_statements(store: Store) -> None:
    """One text of a statement for all labs: each would make the SQL of a hundred statements anew, a fifth of a test."""
    store.engine = store.engine.execution_options(compiled_cache=_STATEMENTS)
    store._readers = store._readers.execution_options(compiled_cache=_STATEMENTS)
    _DIALECTS.extend(() if _DIALECTS else [store.engine.dialect])
    store.engine.dialect = store._readers.dialect = _DIALECTS[0]  # a text belongs to the dialect, as an object


def an_app(lab: Lab, *, who: Who, key: str | None = None) -> FastAPI:
    """The web application.  Its routes are the same for every lab, so they are those of the first one that was made:
    FastAPI works them out at the first request of each application, which takes a third of a second."""
    app = create_app(lab, who=who, key=key)
    _ROUTES.extend(() if _ROUTES else app.router.routes)
    app.router.routes[:] = _ROUTES
    return app


@pytest.fixture
def lab(tmp_path: Path, clock: Clock) -> Iterator[Lab]:
    with a_lab(tmp_path, clock) as made:
        yield made


@pytest.fixture
def ask(lab: Lab) -> Callable[..., TestClient]:
    """The web application, asked by whom one likes: ``ask("ann").get(...)``, ``ask("root", "admin")``, ``ask(None)``.

    Redirects are not followed; an error that is a defect is raised in the test.
    """
    actors: dict[str, Actor] = {}
    app = an_app(lab, who=lambda connection: actors.get(connection.headers.get("x-test-actor", "")))

    def ask_as(name: str | None, role: str = "user", teams: Sequence[str] = ()) -> TestClient:
        key = f"{name}/{role}/{','.join(teams)}"
        if name is not None:
            actors[key] = with_roles(name, [role], teams, "session")
        return TestClient(app, headers={"x-test-actor": key}, follow_redirects=False)

    return ask_as
