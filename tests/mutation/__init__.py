"""The proof that the tests bite: changes to the heart of the library which they have to notice."""
