"""Silence, judged by messages and a time that is passed in."""

from preble_router.liveness import Change, Liveness


def checks(liveness: Liveness, start: float, end: float) -> list[float]:
    """The moments, on a beat of 50 ms, at which it became suspect."""
    beats = [start + 0.05 * i for i in range(round((end - start) / 0.05) + 1)]
    return [at for at in beats if liveness.check(now=at) is Change.SUSPECT]


def test_silence_makes_suspect_once() -> None:
    liveness = Liveness(2.0, now=10.0)
    assert checks(liveness, 10.0, 11.95) == []
    assert len(checks(liveness, 12.0, 20.0)) == 1
    assert liveness.suspect


def test_a_message_brings_it_back() -> None:
    liveness = Liveness(2.0, now=0.0)
    checks(liveness, 0.0, 3.0)
    assert liveness.heard(now=3.0) is Change.BACK
    assert not liveness.suspect
    assert liveness.heard(now=3.1) is Change.NONE
    assert checks(liveness, 3.05, 5.05) == []
    assert len(checks(liveness, 5.1, 6.0)) == 1


def test_an_announced_step_may_take_its_time() -> None:
    liveness = Liveness(2.0, now=0.0)
    liveness.heard(next_step_seconds=5.0, now=0.0)
    assert checks(liveness, 0.0, 6.9) == []
    assert len(checks(liveness, 6.95, 7.1)) == 1


def test_no_announcement_is_believed_for_ever() -> None:
    liveness = Liveness(2.0, now=0.0)
    liveness.heard(next_step_seconds=1e9, now=0.0)
    assert len(checks(liveness, 0.0, 65.0)) == 1


def test_time_in_which_the_router_slept_is_not_held_against_the_worker() -> None:
    liveness = Liveness(2.0, now=0.0)
    checks(liveness, 0.0, 1.0)
    assert liveness.check(now=11.0) is Change.NONE, "the router was away, not the worker"
    assert checks(liveness, 11.05, 11.3) == []
    assert len(checks(liveness, 11.3, 14.0)) == 1
    assert liveness.silent_seconds(now=14.0) == 14.0


def test_a_router_that_is_late_again_and_again_counts_the_time_it_was_awake() -> None:
    liveness = Liveness(2.0, now=0.0)
    late = [0.5 * beat for beat in range(1, 20)]
    assert all(liveness.check(now=at) is Change.NONE for at in late), "0.1 s of each 0.5 s"
    assert [at for at in (9.9, 10.0) if liveness.check(now=at) is Change.SUSPECT] == [10.0]
