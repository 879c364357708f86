"""The director of a rig's faults: rules, windows, and the injectors of every layer.

Imports blockfs.core, scenarios.faults, siterig.core.
"""
