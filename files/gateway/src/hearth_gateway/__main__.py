"""``python -m hearth_gateway`` is the same as the ``hearth-gateway`` command."""

import sys

from hearth_gateway.cli import main

sys.exit(main())
