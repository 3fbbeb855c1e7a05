"""Dynamic queries inside other people's models."""
