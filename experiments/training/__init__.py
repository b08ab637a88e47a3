"""What `experiments.train` is made of: settings of a run, what it is trained on, fine-tuning."""
