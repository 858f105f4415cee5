"""Gradio pages for a person: continue a text (`run_gradio_web.py`), or chat (`run_pangu_bot.py`).

Public names: `launch.open_page` parses the command line and serves a page, `engine` opens the backend of a page,
`text_page.build` and `chat_page.build` build the pages, `server.PageServer` serves one behind `guard.Guard`. `page`
holds what both pages share, and `words` their texts in Chinese and English. May import `src`, never
`serving_increment` or `benchmarks`.
"""
