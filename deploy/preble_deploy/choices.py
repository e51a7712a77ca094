"""Names of the policies, looked up where they are defined, when somebody asks."""


def routing_policies() -> tuple[str, ...]:
    """Names that `--policy` takes."""
    from preble_router.policies import POLICY_NAMES

    return tuple(POLICY_NAMES)


def local_policies() -> tuple[str, ...]:
    """Names that `--local-policy` takes."""
    from preble_worker.policies import POLICY_NAMES

    return tuple(POLICY_NAMES)


def length_predictors() -> tuple[str, ...]:
    """Names that `--length-predictor` takes."""
    from preble_router.lengths import LENGTH_PREDICTOR_NAMES

    return LENGTH_PREDICTOR_NAMES


def simulated_length_predictors() -> tuple[str, ...]:
    """The same in a simulation, which knows what is to come."""
    from preble_loadgen.simulator.options import ORACLE

    return (*length_predictors(), ORACLE)
