"""Find pictures, read them safely, orient and resize them: one path for training, evaluation and serving."""
