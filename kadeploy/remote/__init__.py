"""How nodes are reached: many at once, over connections that are kept, inside windows, in a network namespace."""
