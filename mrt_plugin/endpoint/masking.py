"""Mask secrets in output: API keys, passwords, and their copies in a server's messages."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
LONG = 16
"""From this many characters, a key is masked in successful replies too. A shorter key (`EMPTY`) may be a real word."""

_NAME = (
    r"(?:[\w-]*[_-])?(?:api[_-]?key|key|secret|password|passwd|authorization|credentials?|signature)"
    r"|(?:(?:access|auth|api|bearer|session)[_-])?token"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_FIELD = re.compile(
    rf"""(?<![\w-])((?:{_NAME})["']?\s*[:=]\s*["']?(?:(?:bearer|basic)\s+)?)([^\s"'&,;#}}]+)""", re.IGNORECASE
)
_LOGIN = re.compile(r"[^\s/]+@")


def mask(text: str, secrets: Iterable[str]) -> str:
    """Replace every secret, also as escaped in JSON, Python and addresses. Mask a text before cutting it."""
    spelled: set[str] = set()
    for secret in filter(None, secrets):
        as_json = json.dumps(secret)[1:-1]
        spelled |= {secret, as_json, as_json.replace("/", "\\/"), repr(secret)[1:-1]}
        spelled |= {quote(secret), quote(secret, safe="")}
    for form in sorted(spelled, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def mask_typed(text: str) -> str:
    """Replace the parts of a typed address, or of typed fields, that usually hold a secret."""
    return _FIELD.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", text))


def mask_fields(value: Any) -> Any:
    """Return a copy of a JSON value with its secrets masked. Secrets are recognised by their names."""
    if isinstance(value, dict):
        return {
            name: MASK if _SECRET_NAME.fullmatch(name) and isinstance(item, str) else mask_fields(item)
            for name, item in value.items()
        }
    return [mask_fields(item) for item in value] if isinstance(value, list) else value


def secrets_in(url: str, fields: Any) -> Iterator[str]:
    """Yield the secrets of an address and of fields. Secrets are recognised by their names."""
    for _, found in _FIELD.findall(url):
        yield unquote(found)
    items = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    for name, item in items:
        if _SECRET_NAME.fullmatch(str(name)) and isinstance(item, str):
            yield re.sub(r"^(bearer|basic)\s+", "", item, flags=re.IGNORECASE)
        else:
            yield from secrets_in("", item)


@contextmanager
def masked_log(name: str, secrets: Sequence[str]) -> Iterator[None]:
    """Mask secrets in a library's log while the block runs, for example in the address of a request."""

    def masked(record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage(), secrets), ()
        return True

    logger = logging.getLogger(name)
    logger.addFilter(masked)
    try:
        yield
    finally:
        logger.removeFilter(masked)
