"""Small files on a disk or in a bucket: replaced as a whole, appended to, or locked. The lowest layer."""
