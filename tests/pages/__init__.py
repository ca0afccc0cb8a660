"""What a page's Python takes for granted, a module a page: it is run before the page's first block."""
