"""The folder in_torch is for the pytest of another environment, which test_port.py starts."""

collect_ignore = ["in_torch"]
