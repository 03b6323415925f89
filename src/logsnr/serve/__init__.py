"""Serving: one process that samples, a gate that enforces keys, and a page."""
