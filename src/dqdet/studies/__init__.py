"""The paper's tables and figures at a size that a small machine can run, one file each."""
