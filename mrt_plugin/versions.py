"""The supported and the installed versions of the libraries that this package depends on.

The supported ranges are defined in one place, the package's requirements in `pyproject.toml`. They are read from the
installed package's metadata.
"""

import platform
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Library:
    """A library: its supported versions and its installed version."""

    name: str
    supported: str
    """A PEP 440 specifier such as `>=1.9,<1.17`; empty where any version is supported."""
    found: str | None
    """The installed version; None where the library is missing."""
    extra: str | None
    """The extra that requires it; None for a core dependency."""

    @property
    def ok(self) -> bool:
        """Whether nothing has to be installed: found in the supported range, or optional and missing."""
        if self.found is None:
            return self.extra is not None
        return self.in_range

    @property
    def in_range(self) -> bool:
        """Whether a version was found and is in the supported range."""
        return self.found is not None and Requirement(f"{self.name}{self.supported}").specifier.contains(
            self.found, prereleases=True
        )

    @property
    def remedy(self) -> str:
        """The command to run if it is not ok, or to install a missing library."""
        if self.extra is None or self.found is not None:
            return f"pip install '{self.name}{self.supported}'"
        return f"pip install 'mrt-plugin[{self.extra}]'"


def libraries(*, tools: bool = False) -> list[Library]:
    """Return the libraries in the package's requirements, core ones first.

    Args:
        tools: include libraries that only testing and development need.

    Example:

    >>> [library.name for library in libraries()][:3]
    ['torch', 'transformers', 'trl']
    """
    result = []
    for requirement in map(Requirement, metadata.requires("mrt-plugin") or []):
        extra = _extra(requirement)
        if tools or extra not in ("test", "dev"):
            bounds = sorted(str(requirement.specifier).split(","), key=lambda bound: bound.startswith("<"))
            result.append(Library(requirement.name, ",".join(bounds), _installed(requirement.name), extra))
    return sorted(result, key=lambda library: library.extra is not None)


def python_version() -> str:
    """Return the running Python's version."""
    return platform.python_version()


def _extra(requirement: Requirement) -> str | None:
    if requirement.marker is None:
        return None
    extras = metadata.metadata("mrt-plugin").get_all("Provides-Extra") or []
    if requirement.marker.evaluate({"extra": ""}):
        return None
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), None)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
