"""What several nodes need: checks, settings, link types."""
