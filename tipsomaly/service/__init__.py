"""The Space without its looks."""
