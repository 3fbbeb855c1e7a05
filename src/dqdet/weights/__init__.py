"""Published weights of other implementations, and how they become ours."""
