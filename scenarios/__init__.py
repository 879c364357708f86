"""The drill: workload, checks, steps and report. Its rooms import ``blockfs`` and ``azure_emu``.

Imports no other room.
"""
