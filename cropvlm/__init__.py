"""CropVLM: learn where to zoom, then let any frozen vision-language model answer (arXiv 2511.19820)."""
