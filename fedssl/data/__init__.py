"""Who holds which samples: data sets, their division among clients, and what evaluates."""
