"""The pieces of ``benchmarks/gpu.py``: what each measures, and how measurements are kept."""
