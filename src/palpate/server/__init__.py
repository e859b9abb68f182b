"""The annotator behind HTTP: one core (`desk`), thin routers, a page; see `palpate serve`."""
