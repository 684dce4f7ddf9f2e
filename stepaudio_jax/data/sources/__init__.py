"""Readers of data sources: one module a format."""
