"""Whole data sets: evaluation, training, ablations."""
