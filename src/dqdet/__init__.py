"""Detection transformers with dynamic query combinations."""
