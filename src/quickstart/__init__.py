"""The quickstart's corpus and exam.

`corpus` writes the corpus and the questions that are held out of it, from the `facts` and the sentences of `templates`.
`exam` asks a trained model the held-out questions. `corpus`, `facts` and `templates` import `src.common` only; `exam`
imports `src.generate` and `src.inference`.
"""
