"""Checkpoints of other programs, read into ours."""
