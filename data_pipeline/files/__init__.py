"""Files of counts, whatever their format."""
