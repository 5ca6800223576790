"""Scaling laws: fit them on small runs, say how sure they are, and read the large run off them. Imports no torch."""
