"""The web page and the OpenAI-compatible API, over a model in this process or over MindSpore Serving.

`backends` answers, `schemas` and `wire` are the API's requests and answers, `api` and `page` its routes, `app` puts
them together and `server` is the program.
"""
