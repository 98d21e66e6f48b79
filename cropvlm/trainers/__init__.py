"""Steps 2 and 3: TRL's trainers, and what is changed in them."""
