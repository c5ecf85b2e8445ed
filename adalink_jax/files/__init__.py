"""Small files on a disk or in a bucket: written whole, growing, locked. The lowest layer."""
