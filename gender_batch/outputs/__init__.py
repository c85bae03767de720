"""What a run writes: rows as CSV, JSON or JSON Lines by suffix, and its record; published whole or not at all."""
