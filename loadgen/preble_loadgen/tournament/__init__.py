"""The tournament of routing policies: what competes, how it is run and kept, and the report."""
