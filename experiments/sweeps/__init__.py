"""What `experiments.sweep` is made of: the plan, those who work through it, the table."""
