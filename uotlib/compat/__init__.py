"""Drop-in replacements for functions of other libraries, one module for each library."""
