"""A mixture of experts for tables of numbers, in the style of scikit-learn."""
