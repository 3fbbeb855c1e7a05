"""Models for other people's runtimes: one file each that has the network, its normalisation and what it means."""
