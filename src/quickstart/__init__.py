"""The quickstart's own corpus: facts (`facts`), the sentences around them (`templates`) and the program that writes
them out with its held-out questions (`corpus`). Imports `src.common` alone.
"""
