"""What the files of the ecosystem look like."""
