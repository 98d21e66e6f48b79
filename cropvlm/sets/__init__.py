"""Step 1: mixture, responses, report, saving."""
