"""The study of scheduling within a worker: its contests, its cells, how one is simulated."""
