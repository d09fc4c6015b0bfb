"""The supported versions of libraries, from the installed package's metadata, and the installed versions."""

import logging
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

logger = logging.getLogger(__name__)

TESTED = {
    "torch": "2.15",
    "transformers": "5.23",
    "trl": "1.16",
    "peft": "0.21",
    "accelerate": "1.15",
    "datasets": "5.2",
    "bitsandbytes": "0.50",
    "axolotl": "0.21",
}
"""The newest release of each library that the tests ran with (`constraints*.txt`, `requirements-axolotl.txt`)."""


@dataclass(frozen=True)
class Library:
    """A library: its supported versions (a PEP 440 specifier), its installed version, and the extra that needs it."""

    name: str
    supported: str
    found: str | None
    extra: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing has to be installed: found in the supported range, or optional and missing."""
        return self.in_range if self.found is not None else self.extra is not None

    @property
    def in_range(self) -> bool:
        return self.found is not None and SpecifierSet(self.supported).contains(self.found, prereleases=True)

    @property
    def untested(self) -> bool:
        """Whether it is newer than the newest tested release."""
        newest = TESTED.get(self.name)
        return newest is not None and self.found is not None and _minor(self.found) > _minor(newest)

    @property
    def remedy(self) -> str:
        """The command to run if it is not ok, or to install a missing library."""
        if self.extra is None or self.found is not None:
            return f"pip install '{self.name}{self.supported}'"
        return f"pip install 'mrt-plugin[{self.extra}]'"


def _minor(version: str) -> tuple[int, int]:
    parsed = Version(version)
    return parsed.major, parsed.minor


def warn_of_untested() -> None:
    """Log one line that names the installed libraries newer than the newest tested release, if there are any."""
    newer = [
        f"{library.name} {library.found} (tested: {TESTED[library.name]})"
        for library in libraries()
        if library.untested
    ]
    if newer:
        logger.warning("Newer than what mrt-plugin is tested with: %s. If a step fails, try these.", ", ".join(newer))


def libraries(*, tools: bool = False) -> list[Library]:
    """Return the libraries in the package's requirements, core ones first. Only tests and development need `tools`."""
    result = []
    extras = metadata.metadata("mrt-plugin").get_all("Provides-Extra") or []
    for requirement in map(Requirement, metadata.requires("mrt-plugin") or []):
        marker = requirement.marker
        core = marker is None or marker.evaluate({"extra": ""})
        extra = None if core or marker is None else next((e for e in extras if marker.evaluate({"extra": e})), None)
        if tools or extra not in ("test", "dev"):
            bounds = sorted(str(requirement.specifier).split(","), key=lambda bound: bound.startswith("<"))
            found = next((one.version for one in metadata.distributions(name=requirement.name)), None)
            result.append(Library(requirement.name, ",".join(bounds), found, extra))
    return sorted(result, key=lambda library: library.extra is not None)
