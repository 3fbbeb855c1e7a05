"""A trained model in use: on images, folders and videos, with pictures and official results files."""
