"""The fault language: rules, their schedule, triggers, the fault atlas, and files of other tools.

Imports blockfs.core, blockfs.documents.
"""
