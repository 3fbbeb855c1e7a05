"""A trained model behind HTTP: `dqdet serve`."""
