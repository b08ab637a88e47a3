"""What the commands compute: a model beside its baselines and its random twin, as tables and pictures."""
