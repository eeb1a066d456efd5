"""What the suites of files share: formats, writers, mutations, and processes that hold them."""
