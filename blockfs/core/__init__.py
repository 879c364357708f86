"""Small shared parts: errors, models for the wire, clocks, waits, locks, progress.

Imports no other room.
"""
