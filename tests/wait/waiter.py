"""The script of a `Worker` that waits: one client, as many threads as there are waiters."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import Any

import fencer


class Waiter:
    """Answers a test's messages."""

    def __init__(self, url: str, name: str, holder: str | None = None) -> None:
        self.fencer = fencer.connect(url, holder=holder)
        self.name = name
        self.served: list[tuple[int, int, float]] = []
        self.trouble: list[str] = []
        self.lease: fencer.Lease | None = None
        self.interruptible = False
        signal.signal(signal.SIGINT, self.interrupt)

    def handle(self, do: str, **options: Any) -> Any:
        return getattr(self, do)(**options)

    def join(self, number: int, ttl: float, wait: float, hold: float) -> None:
        """Have a thread wait, hold the lease for a while, and release it."""

        def one() -> None:
            try:
                lease = self.fencer.acquire(self.name, ttl=ttl, wait=wait)
                self.served.append((number, lease.token, time.monotonic()))
                time.sleep(hold)
                lease.release()
            except fencer.FencerError as error:
                self.trouble.append(f"waiter {number}: {error!r}")

        threading.Thread(target=one, daemon=True).start()

    def results(self) -> Any:
        """Who was served: number, token, machine-wide monotonic time; and what went wrong."""
        return self.served, self.trouble

    def hold(self, ttl: float, wait: float = 0.0, keep_alive: bool = False) -> int:
        """Get the lease and keep it."""
        self.lease = self.fencer.acquire(self.name, ttl=ttl, wait=wait, keep_alive=keep_alive)
        return self.lease.token

    def release(self) -> bool:
        assert self.lease is not None
        return self.lease.release()

    def valid(self) -> bool:
        assert self.lease is not None
        return self.lease.valid

    def use(self, ttl: float, wait: float) -> str:
        """Get the lease in the main thread, where an interrupt strikes, and release it."""
        lease = None
        try:
            self.interruptible = True
            lease = self.fencer.acquire(self.name, ttl=ttl, wait=wait)
            self.interruptible = False
        except KeyboardInterrupt:
            self.interruptible = False
        if lease is None:
            return "interrupted"
        lease.release()
        return "served"

    def interrupt(self, *_: object) -> None:
        """The handler of SIGINT: one that comes too late for the acquire changes nothing."""
        if self.interruptible:
            self.interruptible = False
            raise KeyboardInterrupt

    def fork(self, leave: str) -> int:
        """Fork a child that uses what it inherited and ends; return its status."""
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if self.lease is not None and (self.lease.valid or self.lease.release()):
                os._exit(4)
            with self.fencer.acquire("of the child", wait=5, keep_alive=True) as own:
                own.renew()
            if leave == "exit":
                atexit.register(self.fencer.close)
                sys.exit(3)
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(url: str, name: str, holder: str | None = None) -> Any:
    return Waiter(url, name, holder).handle
