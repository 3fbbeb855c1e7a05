"""Trained models: run folders, where models come from, and what is made of them."""
