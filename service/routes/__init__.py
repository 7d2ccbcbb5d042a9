"""One resource a file. Each builds its router around the `Api` it is given: no globals."""
