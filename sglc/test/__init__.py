"""What benchmark programs of the field import to choose where they run."""
