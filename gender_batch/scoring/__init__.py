"""One run over many pictures: find, read, infer, and say one row of each."""
