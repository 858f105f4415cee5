"""The web page and the OpenAI-compatible API, over a model in this process or over MindSpore Serving.

Public names: `server.main` is the program, `app.create_app` makes the WSGI application over a `TokenBackend`. `api` and
`page` hold the routes, `schemas` checks requests, `caller` notices who hangs up, `log_probs` writes log-probabilities,
`wire` writes answers, `openapi` describes the API, `errors` turns errors into statuses, `metrics` counts. May import
all of `src`.
"""
