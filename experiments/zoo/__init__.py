"""Model families by name, each built from scratch with random weights."""
