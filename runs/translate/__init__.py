"""A workflow over a table or a folder of pictures: `python dev.py translate --help`.

table     what is asked for: rows of CSV, JSON Lines, Parquet, or a folder's pictures
mapping   which column goes to which input of the workflow
graph     the workflow as it is run: set, without what nobody asked for, over several pictures at once
rows      a row of the table, run on a server
batches   rows that only differ in their picture, run as one
report    contact sheet, table, and a page to look at
command   the command line, from its arguments to its exit code
"""
