"""Hiding: a public model without a concept, and a key that brings it back (2403.12326)."""
