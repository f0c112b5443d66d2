"""What the real update and decode step take on hardware that is not here: see `__main__`."""
