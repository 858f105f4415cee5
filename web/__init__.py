"""Pages for a person, with Gradio: a text that is written on (`run_gradio_web.py`) and a chat (`run_pangu_bot.py`).

`engine` answers, from a model in this process or from an OpenAI-compatible server; `text_page` and `chat_page` are
built of what `page` holds; `words` is what they say, in Chinese and in English; `launch` reads the command line and
serves.
Imports from `src` alone, never from `serving_increment`.
"""
