"""What holds for all tests."""

import os

# gRPC's core logs every connection that a test cuts, to the terminal, past pytest's capture.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
