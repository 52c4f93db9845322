"""python -m tinymoe.train: from a command line to a trained model."""
