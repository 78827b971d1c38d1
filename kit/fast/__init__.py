"""The same mathematics, faster. Each function here has a plain form in the file that calls it, or in its
test, and equals it there."""
