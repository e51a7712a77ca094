"""Routing policies, one pure file each."""
