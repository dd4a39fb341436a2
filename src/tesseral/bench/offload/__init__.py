"""Contexts that a device's memory does not hold: device and CPU together, beside copying."""
