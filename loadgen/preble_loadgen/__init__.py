"""The load: traces, replay against a live cluster, and the report on it.

traces.py        the one door to trace files; formats/ has a file per format
prompts.py       what a trace says about prompts, made into tokens (pure)
scaling.py       lengths made to fit a smaller model, sharing kept (pure)
arrivals.py      arrival times made faster or slower (pure)
workloads/       synthetic workloads, one file each (pure)
analysis.py      what a trace asks of a cluster (pure); analysis_text.py prints
closed_loop.py   which request of a session waits for which (pure)
replay.py        replay, open and closed loop; http_target.py and grpc_target.py speak to clusters
report.py        from what happened to each request to figures (pure); report_text.py prints
"""
