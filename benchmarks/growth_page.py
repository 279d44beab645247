def write_page(figures): pass
