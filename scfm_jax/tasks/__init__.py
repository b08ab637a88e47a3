"""Downstream tasks, one file each: predict, score, and the simple baselines every score is shown beside."""
