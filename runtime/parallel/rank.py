"""The process of a rank: `python -m runtime.parallel.rank FOLDER RANK`."""

from __future__ import annotations

import sys

from runtime.engine.bytecode import kept_bytecode
from runtime.engine.read_ahead import bytecode_folder

if __name__ == "__main__":
    with kept_bytecode(bytecode_folder()):
        from runtime.parallel.ranks import main
    main(sys.argv[1], int(sys.argv[2]))
