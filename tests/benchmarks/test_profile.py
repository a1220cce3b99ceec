"""From the events of a profiler to thread time by kind of operation."""

from jaxleak.benchmarks import profile


def event(name, duration, thread=1):
    return {"ph": "X", "pid": 7, "tid": thread, "name": name, "dur": duration}


def test_time_is_summed_by_thread_and_kind():
    events = [
        {"ph": "M", "pid": 7, "tid": 1, "name": "thread_name", "args": {"name": "tf_XLAEigen/1"}},
        {"ph": "M", "pid": 7, "tid": 2, "name": "thread_name", "args": {"name": "tf_XLAEigen/2"}},
        {"ph": "M", "pid": 7, "tid": 3, "name": "thread_name", "args": {"name": "python"}},
        event("concatenate.12", 5.0),
        event("concatenate.7", 2.0),
        event("concatenate.7", 1.0, thread=2),
        event("ThunkExecutor::Execute", 100.0),
        event("ynn_fusion", 9.0, thread=2),
        event("concatenate.7", 50.0, thread=3),
    ]
    assert profile.thread_time(events) == {
        ((7, 1), "concatenate"): 7.0,
        ((7, 2), "concatenate"): 1.0,
        ((7, 2), "ynn_fusion"): 9.0,
    }
