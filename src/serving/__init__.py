"""Models that many callers share, and the backends that answer pages, APIs and evaluations.

Public names:

- `backends`: `Backend` and `TokenBackend`, the protocol of everything that answers.
- `service`: `TextService`, a model in this process. `open_model`: `open_model` opens any kind of model as a service.
- `mindspore_serving_client`: `ServingClient` and `ServingBackend`, for MindSpore Serving.
- `openai_client`: `OnlineModels`, for OpenAI-compatible servers.
- `visitors`: which requests a server answers. `listening`: the sockets of servers.
- `chat`: the template that turns a chat into a text. `terminal`: prompts and answers at the terminal.

May import `generate`, `inference`, `cpu` and what lies below them. MindSpore Serving's environment (Python 3.9) imports
`backends`, `chat`, `listening`, `service`, `visitors` and `open_model.open_exported`.
"""
