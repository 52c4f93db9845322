"""python -m tinymoe.evaluate: what a trained model is worth, and what it costs."""
