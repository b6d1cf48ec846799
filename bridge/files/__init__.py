"""Files in the host's folders, and those that are downloaded when a user picks them by name."""
