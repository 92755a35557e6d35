"""The examples of the README, run as they stand."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import redis
import sqlalchemy as sa

import fencer
from fencer.guards.http import FencingWSGI
from fencer.guards.sql import SQLGuard
from tests.fix_s3 import BUCKET, s3_client

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ACCOUNTS = sa.Table(
    "accounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("balance", sa.Integer),
)


def block(begins: str) -> str:
    """The example whose first line begins so."""
    (found,) = [text for text in BLOCKS if text.startswith(begins)]
    return str(found)


@pytest.fixture
def names(connect_threads: Any, redis_client: redis.Redis) -> dict[str, Any]:
    """What the examples take for granted."""
    f = connect_threads()
    return {
        "fencer": fencer,
        "f": f,
        "client": redis_client,
        "lease": f.acquire("billing", ttl=30),
    }


def test_fifteen_lines(
    shared_server: fencer.embedded.Server, redis_client: redis.Redis, capsys: Any
) -> None:
    """The first thing that anybody tries would not work."""
    text = block("import fencer\n").replace("redis://localhost:6379/0", shared_server.unix_url)
    names: dict[str, Any] = {}
    exec(text, names)
    names["f"].close()
    assert redis_client.get("balance") == b"42"
    assert int(capsys.readouterr().out) == names["lease"].token


def test_redis_guard(names: dict[str, Any]) -> None:
    """The example of the guard for Redis would not work."""
    exec(block("# Redis or Valkey"), names)
    assert names["client"].get("balance") == b"48"


def test_sql_guard(names: dict[str, Any], tmp_path: Path) -> None:
    """The example of the guard for SQL would not work."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/data")
    ACCOUNTS.create(engine)
    SQLGuard(engine, "billing").create_table()
    with engine.begin() as connection:
        connection.execute(ACCOUNTS.insert().values(id=7, balance=0))
    exec(block("# PostgreSQL"), names | {"engine": engine, "accounts": ACCOUNTS})
    with engine.connect() as connection:
        assert connection.scalar(sa.select(ACCOUNTS.c.balance)) == 42
    engine.dispose()


def test_file_guard(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the guard for files would not work."""
    monkeypatch.chdir(tmp_path)
    exec(block("# A file"), names)
    assert (tmp_path / "orders.json").read_text() == '{"stock": 3}'


def test_s3_guard(names: dict[str, Any], s3_url: str) -> None:
    """The example of the guard for S3 would not work."""
    s3 = s3_client(s3_url)
    exec(block("# An object on S3").replace('"bucket"', repr(BUCKET)), names | {"s3": s3})
    assert s3.get_object(Bucket=BUCKET, Key="orders.json")["Body"].read().startswith(b'{"stock"')
    s3.close()


def test_http_guard(names: dict[str, Any]) -> None:
    """The examples of the two sides of HTTP would not work."""
    ran = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        ran.append(environ["fencer.sequencer"])
        start_response("204 No Content", [])
        return []

    exec(block("# HTTP"), asgi := names | {"app": object()})
    assert type(asgi["app"]).__name__ == "FencingASGI"
    guarded = FencingWSGI(application, fencer.guards.RedisGuard(names["client"], "billing"))
    with make_server("127.0.0.1", 0, guarded, handler_class=Quiet) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        exec(block("# The caller's side"), names | {"url": url})
        serving.join()
    assert len(ran) == 1


class Quiet(WSGIRequestHandler):
    """Says nothing on stderr."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_memory_guard(names: dict[str, Any]) -> None:
    """The example of the guard for memory would not work."""
    exec(block("# What lives in this process"), names)
    assert names["balance"] == 42


def test_election(names: dict[str, Any]) -> None:
    """The example of an election would not work."""
    names["guard"] = fencer.guards.RedisGuard(names["client"], "leader")
    elected = threading.Event()
    text = block("election = ").replace(
        "with election:\n", "with election:\n    elected.wait(10)\n"
    )
    text = text.replace("lambda lease: print(", "lambda lease: elected.set() or print(")
    exec(text, names | {"elected": elected})
    assert names["client"].get("cleanups") == b"1"


def test_announcing(names: dict[str, Any]) -> None:
    """The example of announcing would not work."""
    names["guard"] = fencer.guards.RedisGuard(names["client"], "orders")
    exec(block("lease = f.acquire"), names)
    assert names["guard"].highest() == names["lease"].token
