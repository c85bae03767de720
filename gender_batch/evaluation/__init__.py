"""How good the answers are: metrics with intervals, tables per group, plots, the gallery."""
