"""python -m tinymoe.check: is every gradient right? The cases of the operations, and the report."""
