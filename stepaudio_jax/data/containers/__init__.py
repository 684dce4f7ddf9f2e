"""Containers of rows: a module for each kind of file, with the methods of `base.Container`."""
