"""The cost of a rig that has nothing to do."""
