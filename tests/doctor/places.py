"""What the tests of the doctor share."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer.doctor import Finding, Report, Severity, examine


def open_client(url: str, **options: Any) -> redis.Redis:
    """A client that an application might use."""
    return redis.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), **options
    )


def look(*urls: str, **options: Any) -> Report:
    """Examine the servers at some URLs."""
    clients = [open_client(url) for url in urls]
    try:
        return examine(*clients, **options)
    finally:
        for client in clients:
            client.close()


def findings(report: Report) -> list[Finding]:
    """What was found, but for the age of the server that the tests run on."""
    return [
        each
        for each in report.findings
        if (each.check, each.severity) != ("version", Severity.NOTE)
    ]


def checks(report: Report) -> set[tuple[str, str]]:
    """The checks that found something, and how bad it is."""
    return {(each.check, str(each.severity)) for each in findings(report)}


def only(report: Report) -> Finding:
    """The one thing that was found, and nothing was left unseen."""
    (finding,) = findings(report)
    assert report.unseen == ()
    assert finding.danger
    assert finding.consequence
    assert finding.cure
    return finding
