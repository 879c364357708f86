"""A test rig for site recovery: the program, and by links the packages of the other top-level folders.

Imports siterig.cli.
"""
