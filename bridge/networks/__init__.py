"""Networks beside the model, under the host's memory management."""
