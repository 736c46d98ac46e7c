"""Search over documents: what is kept, how texts become it, and how it is found again."""
