"""Names of the policies, looked up where they are defined, when somebody asks."""


def routing_policies() -> tuple[str, ...]:
    """Names that `--policy` takes."""
    from preble_router.policies import POLICY_NAMES

    return tuple(POLICY_NAMES)


def local_policies() -> tuple[str, ...]:
    """Names that `--local-policy` takes."""
    from preble_worker.policies import POLICY_NAMES

    return tuple(POLICY_NAMES)
