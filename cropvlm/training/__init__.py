"""Steps 2 and 3: SFT and GRPO."""
