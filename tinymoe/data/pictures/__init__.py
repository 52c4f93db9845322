"""Pictures with captions: generated shapes and glyphs, and the digits that come with scikit-learn."""
