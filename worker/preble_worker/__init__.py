"""The worker: schedules and computes the requests that routers send it."""
