"""The parts of `experiments.sweep`: the plan, the processes that run its points, the table."""
