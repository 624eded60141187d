"""Measurements: quality, speed and memory, each with one command."""
