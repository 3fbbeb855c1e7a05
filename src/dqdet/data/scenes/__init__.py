"""The built-in data set: pictures and videos drawn from a seed."""
