"""A world of pictures and questions, and tiny models, on which the whole pipeline runs on a CPU."""
