"""The nodes: one thin class for each thing a user does."""
