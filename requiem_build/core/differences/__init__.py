"""Where two versions of one file differ, in the file's own terms: a format a module. Pure: bytes in, places out."""
