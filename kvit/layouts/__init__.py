"""Where the rows of K and V lie in memory: views of it in place, and whether two of them lie over each other."""
