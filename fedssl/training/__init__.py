"""The federation and its centralised baseline as Lightning modules."""
