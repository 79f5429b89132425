"""Backbones: towers, folders, names and downloads."""
