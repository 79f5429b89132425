"""Pictures, masks and data sets on disk."""
