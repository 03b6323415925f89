"""Continual learning of a classifier and of the generator that replays for it."""
