"""Suites: a paper's tables as data, and the reader of their files."""
