"""Paths, the hub, and files that come from others."""
