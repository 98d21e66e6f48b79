"""Step 1: the teacher's boxes."""
