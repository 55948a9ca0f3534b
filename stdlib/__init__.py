"""A library of programs and the embedded model."""
