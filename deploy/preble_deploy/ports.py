"""Ports that are free, found before anything is started."""

import errno
import socket

from preble.errors import ConfigError
from preble_deploy.settings import RouterOptions


def choose_ports(settings: RouterOptions) -> tuple[int, int]:
    """Ports of gateway and gRPC, both free now. Chosen once: a restarted router must keep them.

    Raises:
        ConfigError: a port is taken, or the host is no address of this machine.
    """
    port = free_port(settings.host, settings.port, "--port")
    grpc_port = settings.grpc_port
    if grpc_port is None:
        grpc_port = settings.effective_grpc_port
    return port, free_port(settings.host, grpc_port, "--grpc-port", not_this=port)


def free_port(host: str, port: int, option: str, not_this: int = 0) -> int:
    """`port` if it can be listened on, a free one for 0. `option` is what to blame."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"--host is {host!r}, no address of this machine") from None
            raise ConfigError(
                f"{option} is {port}, which cannot be listened on ({error.strerror}); choose "
                "another, or 0 for any"
            ) from None
        chosen = int(probe.getsockname()[1])
    if chosen == not_this:
        raise ConfigError(f"{option} is {port}, the same as --port")
    return chosen
