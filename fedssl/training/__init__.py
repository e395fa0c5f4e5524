"""Lightning modules of the federation and of its centralised baseline."""
