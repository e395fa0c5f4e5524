"""What damaged disks, liars and curious clients can do, measured: docs/reliability.md."""
