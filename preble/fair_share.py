"""What router and workers must count alike where tenants share a cluster fairly. Pure."""

OUTPUT_WEIGHT = 2.0
"""An output token in units of a prompt token that has to be computed."""
SAVINGS_TOKENS = 4096.0
"""Most credit that a tenant can have with a worker, and what a new one has."""
