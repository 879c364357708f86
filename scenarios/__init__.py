"""The drill: workload, checks, steps and report. Imports every folder to its left.

Imports no other room.
"""
