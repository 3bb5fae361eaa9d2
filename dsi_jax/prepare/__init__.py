"""From a configuration to a run: everything is checked, nothing is on a device yet."""
