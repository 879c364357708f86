"""Proxies that put faults between the parts of a rig: links, and the blob service.

Imports blockfs.core, cext.
"""
