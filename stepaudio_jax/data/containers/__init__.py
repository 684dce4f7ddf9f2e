"""Containers of rows: one module for each kind of file, all with the methods of `base.Container`."""
