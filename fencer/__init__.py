"""Leases with monotonic fencing tokens on Redis or Valkey, and guards that refuse stale writers."""

from fencer import embedded, guards
from fencer.aio import AsyncFencer, AsyncLease, connect_async
from fencer.client import Fencer, Lease, connect
from fencer.durability import Fsynced, Replicated
from fencer.election import AsyncElection, Election
from fencer.errors import (
    AcquireTimeout,
    FencerError,
    InvalidArgument,
    LeaseLost,
    NotAcquired,
    NotDurable,
    ScriptError,
    ServerFailed,
    StaleToken,
    StoreError,
    StoreUnavailable,
)
from fencer.records import Event, Leader, Status, Waiter
from fencer.sequencer import Sequencer

__version__ = "0.1.0.dev0"

__all__ = [
    # Leases, with threads and on asyncio
    "Fencer",
    "Lease",
    "connect",
    "AsyncFencer",
    "AsyncLease",
    "connect_async",
    "Sequencer",
    # How safe a grant must be before its token is handed out
    "Fsynced",
    "Replicated",
    # Elections
    "Election",
    "AsyncElection",
    # What the store says
    "Event",
    "Leader",
    "Status",
    "Waiter",
    # Parts
    "embedded",
    "guards",
    # Errors
    "AcquireTimeout",
    "FencerError",
    "InvalidArgument",
    "LeaseLost",
    "NotAcquired",
    "NotDurable",
    "ScriptError",
    "ServerFailed",
    "StaleToken",
    "StoreError",
    "StoreUnavailable",
]
