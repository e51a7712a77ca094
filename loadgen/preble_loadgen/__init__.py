"""The load: traces, replay against a live cluster, and the report on it.

traces.py        the one door to trace files; formats/ has a file per format
prompts.py       what a trace says about prompts, made into tokens (pure)
scaling.py       lengths made to fit a smaller model, sharing kept (pure)
arrivals.py      arrival times made faster or slower (pure)
replay.py        open-loop replay; http_target.py and grpc_target.py speak to the cluster
report.py        from what happened to each request to figures (pure); report_text.py prints
"""
