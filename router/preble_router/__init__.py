"""The router: places requests on workers, and speaks HTTP and gRPC to their clients."""
