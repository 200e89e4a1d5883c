"""Measurements: each prints a table, writes JSON, and judges itself against its targets."""
