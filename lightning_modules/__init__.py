"""How each method learns: one file a method on one shared base."""
