"""A trained cropper in other tools: behind a proxy for OpenAI clients, and in lmms-eval."""
