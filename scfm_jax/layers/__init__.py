"""Blocks that more than one model uses; a block moves here at its second user."""
