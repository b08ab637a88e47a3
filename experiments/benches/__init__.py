"""What `experiments.bench` measures: the loader, and a step of each model, one file each."""
