"""Timers and baselines: what every figure of this project is measured with."""
