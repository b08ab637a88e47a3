"""What drugs do to cells."""
