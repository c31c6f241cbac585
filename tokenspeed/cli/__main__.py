# SPDX-License-Identifier: MIT
"""`python -m tokenspeed.cli`, the same as `tokenspeed`."""

import sys

from tokenspeed.cli.main import main

sys.exit(main())
