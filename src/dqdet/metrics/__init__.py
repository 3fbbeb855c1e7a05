"""How good a model is, by the official definitions."""
