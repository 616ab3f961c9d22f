"""The first copy: publication, slot and snapshot on the source; schema, rows and the rest onto the target."""
