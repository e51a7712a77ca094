"""Trace formats, one file each: from the lines of a file to requests.

A format has `recognises(first line)`, `salt(first line, file name)`, `BLOCK_TOKENS` (0 where it has
no blocks) and `read(lines, bad_lines)`, which yields requests as the file has them.
"""
