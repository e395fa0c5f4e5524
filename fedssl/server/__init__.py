"""What the server does in a round: draw a cohort, send tasks, aggregate, calibrate."""
