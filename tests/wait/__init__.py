"""Waiting in line under faults, on real servers."""
