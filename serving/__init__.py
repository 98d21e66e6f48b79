"""CropVLM in the harnesses of others: a proxy that any OpenAI client can ask, a plugin for lmms-eval, an MCP tool."""
