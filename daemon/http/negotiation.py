"""Which of Prometheus' formats a client gets: what its `Accept` likes best of what we write.

prometheus_client looks at one range after the other and trusts each: a version in quotes or of the
future ends in an exception, or is claimed of a text that is not of it. So it is shown one range
that it knows, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# What is written of each media type; no version means any.
_VERSIONS = {
    "application/openmetrics-text": {"", "1.0.0"},
    "text/plain": {"", "0.0.4", "1.0.0"},
    "text/*": {""},
    "*/*": {""},
}
_ESCAPINGS = {"allow-utf-8", "underscores", "dots", "values"}


def encoder_for(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """What writes a registry, and the content type of that; plain text for who likes nothing."""
    ranges = sorted(map(_Range, accept.split(",")), key=lambda asked: -asked.weight)
    known = next((asked.text for asked in ranges if asked.is_written), "")
    encode, content_type = choose_encoder(known)
    return encode, content_type


class _Range:
    """One media range of an `Accept`, its parameters without their quotes."""

    def __init__(self, text: str) -> None:
        parsed = Message()
        parsed["content-type"] = text.strip()
        found = parsed.get_params([], unquote=True)
        self._type = found[0][0].lower() if found else ""
        self._parameters = {name.lower(): value for name, value in found[1:]}

    @property
    def weight(self) -> float:
        """How much it is liked, 1 where nothing is said or nothing that is a number."""
        try:
            return float(self._parameters.get("q", "1"))
        except ValueError:
            return 1.0

    @property
    def is_written(self) -> bool:
        """Whether there is a format of ours for it, and it is not refused."""
        version = self._parameters.get("version", "")
        return self.weight > 0 and version in _VERSIONS.get(self._type, set())

    @property
    def text(self) -> str:
        """As prometheus_client spells it."""
        version, escaping = (self._parameters.get(name, "") for name in ("version", "escaping"))
        parts = [self._type, f"version={version}" if version else ""]
        parts += [f"escaping={escaping}" if escaping in _ESCAPINGS else ""]
        return "; ".join(filter(None, parts))
