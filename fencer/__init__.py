"""Leases with monotonic fencing tokens on Redis or Valkey."""

__version__ = "0.1.0.dev0"
