"""Compiled code for models on a CPU."""
