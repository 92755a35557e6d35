"""Faults made on purpose, on the way between clients and a server: for the tests and the drills."""
