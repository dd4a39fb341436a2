"""One rule for choosing an implementation, shared by every family of kernels.

A family lists its backends in one table, best first. A problem is described without
arrays; each backend answers with a :class:`Verdict`. A backend asked for by name, by
argument or by environment variable, runs or raises; only the default goes down the list.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tesseral._errors import BackendError
from tesseral.runtime import env

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)
B = TypeVar("B", bound="Backend[Any]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend can run a problem and, if not, why."""

    ok: bool
    reason: str = ""


YES = Verdict(True)


class Backend(Protocol[P_contra]):
    """What every backend of every family offers: a name and a verdict."""

    name: str

    def supports(self, problem: P_contra) -> Verdict:
        """Say whether ``problem`` can run here; cheap and without side effects."""
        ...


class Registry(Generic[P, B]):
    """The backends of one kernel family, best first.

    Parameters
    ----------
    family : str
        Name used in messages, such as ``"attention"``.
    table : mapping of str to str
        Backend name to ``"module:Class"``, best first. A class is imported when it is first
        asked about; "not installed" is for its ``supports`` to say, a broken import
        propagates.
    env : str
        Environment variable that forces a backend by name.
    """

    def __init__(self, family: str, table: Mapping[str, str], *, env: str) -> None:
        self.family = family
        self.env = env
        self._table = dict(table)
        self._loaded: dict[str, B] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The backend names, best first."""
        return tuple(self._table)

    @property
    def asked(self) -> str | None:
        """The name in the environment variable, if there is one."""
        return env.read(self.env)

    def get(self, name: str) -> B:
        """Return the backend called ``name``.

        Raises
        ------
        BackendError
            If the family has no such backend.
        """
        if name not in self._table:
            raise self._unknown(name)
        if name not in self._loaded:
            module, _, attribute = self._table[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)()
        return self._loaded[name]

    def explain(self, problem: P) -> dict[str, Verdict]:
        """Return the verdict of every backend on ``problem``, best first."""
        return {name: self.get(name).supports(problem) for name in self._table}

    def choose(self, problem: P, name: str | None = None) -> B:
        """Return the backend that will run ``problem``.

        Parameters
        ----------
        problem : hashable record
            The call, described without arrays; quoted when refused.
        name : str, optional
            A backend to use or fail; ``None`` reads the environment variable, and without
            one takes the first that supports the problem.

        Raises
        ------
        BackendError
            If the named backend is unknown or refuses, or if all refuse.
        """
        asked = self.asked if name is None else name
        said = f" (from {self.env})" if name is None and asked is not None else ""
        for candidate in self._table if asked is None else (asked,):
            backend = self._loaded.get(candidate)
            if backend is None:
                if candidate not in self._table:
                    raise self._unknown(candidate, said)
                backend = self.get(candidate)
            if backend.supports(problem).ok:
                return backend
        raise self._refusal(problem, asked, said)

    def _refusal(self, problem: P, asked: str | None, said: str) -> BackendError:
        who = "no backend can" if asked is None else f"backend {asked!r}{said} cannot"
        refusals = [
            f"  {name}: {self.get(name).supports(problem).reason}"
            for name in (self.names if asked is None else (asked,))
        ]
        return BackendError(
            "\n".join([f"{self.family}: {who} run this call.", str(problem), *refusals])
        )

    def _unknown(self, name: str, said: str = "") -> BackendError:
        return BackendError(
            f"{self.family}: there is no backend {name!r}{said}; there are {', '.join(self.names)}."
        )
