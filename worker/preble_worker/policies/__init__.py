"""Local scheduling policies, one pure file each."""
