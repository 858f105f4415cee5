"""Text in, MindRecord out: the rooms behind `src.preprocess` and `src.dataset`.

`corpus` reads raw text files as documents or examples (`Corpus`, `FORMS`), `encoding` turns them into ids and rows
(`DocumentEncoder`, `ExampleEncoder`, `Packer`), `worker_pool` runs that in several processes (`Workers`), and
`mindrecord` writes and reads the record files (`RecordWriter`, `record_files`, `read_records`). May import `src.common`
and the tokenizers. MindSpore is imported only when a record file is written or read, never in a worker process.
"""
