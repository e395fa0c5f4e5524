"""Measurements of the harm that damaged disks, liars and curious clients can do: docs/reliability.md."""
