"""The commands: `python -m experiments.<command> --help`."""
