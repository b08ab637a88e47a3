"""Reading the files in which models are published, whatever the model."""
