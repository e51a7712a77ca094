"""Blame decides the status."""

import grpc
import pytest

from preble import errors


@pytest.mark.parametrize(
    ("error", "http", "status"),
    [
        (errors.InvalidRequest("x", field="top_p"), 400, "INVALID_ARGUMENT"),
        (errors.Unauthenticated("x"), 401, "UNAUTHENTICATED"),
        (errors.ModelNotFound("x"), 404, "NOT_FOUND"),
        (errors.PromptTooLong("x", num_tokens=2, max_tokens=1), 413, "INVALID_ARGUMENT"),
        (errors.PoisonedRequest("x"), 400, "INVALID_ARGUMENT"),
        (errors.RequestCancelled("x"), 499, "CANCELLED"),
        (errors.SlowReader("x"), 408, "ABORTED"),
        (errors.DeadlineExceeded("x"), 504, "DEADLINE_EXCEEDED"),
        (errors.Overloaded("x", retry_after_seconds=3), 429, "RESOURCE_EXHAUSTED"),
        (errors.NoWorkers("x"), 503, "UNAVAILABLE"),
        (errors.WorkerFailed("x"), 503, "UNAVAILABLE"),
        (errors.PeerError("x"), 502, "INTERNAL"),
        (ValueError("x"), 500, "INTERNAL"),
    ],
)
def test_statuses(error: Exception, http: int, status: str) -> None:
    assert errors.http_status(error) == http
    assert errors.grpc_status(error) == status


def test_every_grpc_status_exists() -> None:
    assert all(hasattr(grpc.StatusCode, name) for name in errors.GRPC_STATUS.values())


def test_codes_are_unique() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    codes = [c.__dict__["code"] for c in classes if "code" in c.__dict__]
    assert len(codes) == len(set(codes))
