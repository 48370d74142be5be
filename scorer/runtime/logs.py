"""Structured logs: one JSON object a line on stderr. Events are nouns, values never come from a payload."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict

from scorer.runtime.secret_text import without_secrets


class _Stderr:
    """Whatever stderr is at the moment: it may be replaced, and the old one closed, while the process goes on."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _without_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Every text but the event's own name without the secrets of this process, however deep it stands."""
    return {name: value if name == "event" else _clean(value) for name, value in event.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_clean(name): _clean(held) for name, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(held) for held in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_secrets(str(value))


def _report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an exception that nothing caught, without the secrets in it."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def _report_thread_crash(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        _report_crash(ended.exc_type, ended.exc_value, ended.exc_traceback)


def configure(level: str = "info") -> None:
    """Send structlog's events to stderr as JSON from `level` on, and crashes as text, both without secrets. Call once,
    at the start of a process."""
    sys.excepthook = _report_crash
    threading.excepthook = _report_thread_crash
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _without_secrets,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
