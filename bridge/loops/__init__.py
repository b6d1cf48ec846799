"""The loops of the core, each run where the host would sample."""
