"""What every door shares: user errors become one sentence and a non-zero exit."""

import sys
from collections.abc import Callable


def run_door(main: Callable[[], None]) -> None:
    """Runs a door; a ValueError or OSError, which our code raises for what a user can mend, prints one line."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
