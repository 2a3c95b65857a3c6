"""The truths of the suite: each public file here is one, with a function ``truth()`` that makes it."""
