"""JSON Schema as a language of texts: every keyword is enforced exactly, or the schema is refused."""
