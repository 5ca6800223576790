"""python -m puna"""

from puna.cli import main

main()
