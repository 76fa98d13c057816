"""What comes with the package: a small model and a few pictures."""
