"""Backends, each under the name by which programs of the field import it, and the base of a user's own."""
