"""What a Python user calls: each name stands in ``dualign`` itself. The heavy ones are imported when they are used."""
