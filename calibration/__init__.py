"""Calibration recipes and golden range tables: data, see README.md."""
