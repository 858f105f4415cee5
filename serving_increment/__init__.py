"""What serves a model: MindSpore Serving's servables, and the web page with its OpenAI-compatible API."""
